"""Models on this machine: the catalog, where files come from, and the store that keeps them."""
