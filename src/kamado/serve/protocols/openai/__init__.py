"""OpenAI's protocol: chat, completions, responses, embeddings and models."""
