"""Agents as actors of a Ray cluster.

Only `driver` and `actor` import Ray, in processes of their own.
"""
