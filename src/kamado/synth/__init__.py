"""Model files that we make ourselves: random weights of a true shape, and mixtures upcycled from dense models."""
