"""Tensor parallelism inside a node: what its ranks, processes of one host, share and how they wait.

Made before the ranks are forked: memory without a name, in which each rank has a word that says how
far it is. The first rank speaks for the node; what a node computes together is its own affair.
"""
