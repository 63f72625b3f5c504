"""How we use other libraries: one way in, what is imported late, and lists of private names."""
