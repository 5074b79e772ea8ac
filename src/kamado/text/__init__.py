"""Text to tokens and back: tokenizers, and the templates that turn conversations into text."""
