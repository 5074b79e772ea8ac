"""What a model makes of given text, and what the engine does with memory and time."""
