"""Answers told as a sequence of events, for APIs that are not chat completions."""
