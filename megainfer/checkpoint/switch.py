"""What a model gives back that has loaded other weights beside those that it computes with."""

from collections.abc import Callable

Switch = Callable[[], None]
"""Has the model compute with what was loaded, from its next step on; called between two steps."""
