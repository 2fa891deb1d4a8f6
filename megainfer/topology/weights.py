"""Which weights an instance computes with."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WeightVersion:
    """number: counts the updates of this instance; 0: the model folder's own weights. name: what
    clients are told; two versions may have the same.

    >>> WeightVersion()
    WeightVersion(number=0, name='0')
    """

    number: int = 0
    name: str = "0"


FOLDERS_OWN = WeightVersion()
"""The weights with which an instance starts."""
