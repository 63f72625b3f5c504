"""How often a model answers questions about a conversation, in text and in speech."""
