"""When each written word of a recording ends."""
