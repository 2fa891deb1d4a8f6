"""What nodes measured, put together: the slowest node of each role sets the pace."""

from megainfer.messages.from_child import Connected, Loaded
from megainfer.messages.message import Role
from megainfer.planner.stage_profile import slowest_profile

LOADED = [
    (Role.ATTENTION, Loaded([(1, 2.0), (4, 3.0)])),
    (Role.ATTENTION, Loaded([(1, 1.0), (4, 5.0)])),
    (Role.EXPERT, Loaded([(1, 0.5), (4, 4.0)])),
    (Role.EXPERT, Loaded([(1, 0.7), (4, 2.0)])),
]
CONNECTED = [
    Connected([(1, 0.25), (4, 0.5)], waking_seconds=1.0),
    Connected([(1, 0.125), (4, 0.75)]),
]


def test_the_slowest_of_each_role_counts():
    profile = slowest_profile(LOADED, CONNECTED, spin_seconds=10.0)
    assert profile.attention.points == ((1, 2.0), (4, 5.0))
    assert profile.expert.points == ((1, 0.7), (4, 4.0))
    assert profile.transfer.points == ((1, 0.25), (4, 0.75))


def test_who_waits_for_longer_than_it_looks_has_to_be_woken():
    """Experts take 0.7 s of one row and 4 of four."""
    profile = slowest_profile(LOADED, CONNECTED, spin_seconds=0.7)
    assert profile.transfer.points == ((1, 0.25), (4, 1.75))
