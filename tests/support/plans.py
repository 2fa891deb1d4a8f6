"""A placement in which experts have replicas, and slots are empty."""

from megainfer.topology import EMPTY, Placement, Table

LIVED_IN = Placement(
    4,
    (Table(((0, 1, 2), (2, 3, 0), (1, EMPTY, 3)), ((5, 12, 0), (16, 16, 11), (4, 0, 0))),),
    {0: 0},
)
