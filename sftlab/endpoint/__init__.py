"""An OpenAI-compatible client: retries, and a cache on disk."""
