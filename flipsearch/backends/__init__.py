"""Models that complete prompts: local ones by transformers or vLLM, and replies from a table."""
