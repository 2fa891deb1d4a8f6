"""The road between ranks of a node on several hosts.

Rank 0 and each rank of another host have a TCP connection of ours, and two process groups of torch
(gloo) with two members each, one a direction, as two nodes have on M2N (`m2n.dist`). An order and
the word that it is done are said on the connection; rows go over the groups. Whoever follows has
memory of the same layout as the ranks of rank 0's host, for itself alone.
"""
