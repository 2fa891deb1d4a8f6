"""OpenAI's completions and chat: requests in, prompts, generation, answers out."""
