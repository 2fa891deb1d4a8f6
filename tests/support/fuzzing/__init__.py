"""Requests made up at random from a seed, over every address of the HTTP API: right ones, damaged
ones, and what becomes of them."""
