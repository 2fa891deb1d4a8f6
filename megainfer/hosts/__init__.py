"""Nodes on other hosts, as the supervisor's host sees them: who has joined, and what stands in."""
