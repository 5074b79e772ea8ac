"""Tests of models made from other models or from nothing."""
