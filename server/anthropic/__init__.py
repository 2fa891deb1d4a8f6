"""Anthropic's /v1/messages: text and tools."""
