"""What is kept so that no text is computed again: sequences in memory, and prefixes on disk."""
