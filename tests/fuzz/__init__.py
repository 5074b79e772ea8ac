"""Fuzz targets: one module a format, each with `fuzz_one(data)`, and a kept corpus.

A package, so that its modules never shadow the libraries of the same name.
"""
