"""The parts of tools/release.py: what a release is made of, and what is said about it."""
