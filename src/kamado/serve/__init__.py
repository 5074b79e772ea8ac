"""The server: OpenAI's, Ollama's and Anthropic's protocols over one back end."""
