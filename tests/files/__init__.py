"""Tests of model files: reading and writing."""
