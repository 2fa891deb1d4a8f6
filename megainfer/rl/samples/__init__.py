"""Answers on their way: windows, the pool they wait in, and which tokens train what; no torch."""
