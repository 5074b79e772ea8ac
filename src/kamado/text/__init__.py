"""Text to tokens and back: tokenizers, and the templates that turn conversations into text.

Here: what a model file says of text, made safe to run. Not here: what a conversation is (engine/turns), nor the bytes
of the file (files).
"""
