"""Faults on demand: drawn by a seed, done inside the processes of a real instance, and judged."""
