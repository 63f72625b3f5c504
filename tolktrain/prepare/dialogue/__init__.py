"""Dialogues to records of conversations: chats, stereo recordings, tagged transcripts and preferences."""
