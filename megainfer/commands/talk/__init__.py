"""Talking to a running server in a terminal: the prompt, its commands, how an answer is shown."""
