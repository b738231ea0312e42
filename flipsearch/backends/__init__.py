"""Models that complete prompts: local ones on transformers or vLLM, served ones over HTTP, and replies from a table."""
