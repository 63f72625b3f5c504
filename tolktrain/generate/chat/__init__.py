"""Conversations with a tuned model, turn by turn: at the terminal, from files, and in the demo."""
