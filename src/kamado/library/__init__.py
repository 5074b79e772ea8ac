"""Models on this machine: names, catalog, fetching from hub or package index, and the store that keeps them.

Here: how a file gets here and where it lies. Not here: what is in it (files), nor what a server makes of names (serve).
"""
