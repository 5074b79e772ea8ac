"""Sizes of the tests' models, in a module of their own so that benchmarks/parity_files.py can put wider ones there."""

# hidden, heads, key-value heads, of a head, of the MLP, layers, vocabulary
WIDTHS = (48, 6, 2, 16, 64, 3, 97)
# in a layer, picked for a token, width of one
EXPERTS = (5, 2, 32)
