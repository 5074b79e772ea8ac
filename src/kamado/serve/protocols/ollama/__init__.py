"""Ollama's protocol: chat, generate, embeddings and the library."""
