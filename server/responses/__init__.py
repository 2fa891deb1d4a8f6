"""OpenAI's /v1/responses, the part that keeps nothing between requests."""
