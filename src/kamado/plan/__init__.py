"""Bytes: what this machine has, what a model will take, and what the caller promised it."""
