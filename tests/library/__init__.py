"""Tests of models on this machine: fetching and keeping."""
