"""Tests of model files: reading, writing, fetching, keeping, making."""
