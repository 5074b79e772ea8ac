"""Conversations: messages and tools to tokens, and answers to events."""
