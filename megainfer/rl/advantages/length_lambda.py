"""Lambda by the length of an answer: the longer, the closer to 1.

Source: T-PPO (arXiv 2506.15050), which takes it from VAPO (arXiv 2504.05118):
lambda = max(least, 1 - 1 / (alpha len)), with alpha 0.05 and least 0.95. len counts an answer's
tokens so far; one that goes on is expected to have half a window more.
"""


def length_lambda(
    tokens: int, *, finished: bool, window: int, alpha: float = 0.05, least: float = 0.95
) -> float:
    """Lambda of an answer of so many tokens; window: tokens that a step may add to it.

    >>> length_lambda(1000, finished=True, window=8192)
    0.98
    >>> length_lambda(100, finished=True, window=8192), length_lambda(0, finished=True, window=2)
    (0.95, 0.95)
    >>> length_lambda(1000, finished=False, window=8000)
    0.996
    """
    length = tokens if finished else tokens + window / 2
    return least if length == 0 else max(least, 1 - 1 / (alpha * length))
