"""Model files that we make ourselves: random weights of a true shape, and mixtures upcycled from dense models.

Here: numbers and shapes to be written. Not here: the GGUF format (files/gguf_writer), nor how weights are packed to
run.
"""
