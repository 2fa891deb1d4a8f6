"""Connections, before anything is known of a request: how many, how slow, how exact."""
