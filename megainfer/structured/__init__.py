"""Structured output: which tokens a grammar allows next. Only `Grammar` is light to import."""
