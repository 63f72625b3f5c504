"""A page on this machine to type, record or upload a prompt, and to hear and read its continuation as it comes."""
