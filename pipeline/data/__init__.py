"""Conversations: read, generated, split, checked and turned into token ids."""
