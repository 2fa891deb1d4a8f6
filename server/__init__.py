"""The OpenAI API in front of the engine: it translates, and decides nothing about models."""
