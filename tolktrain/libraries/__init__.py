"""The use of other libraries: their only imports, deferred imports, and lists of private names."""
