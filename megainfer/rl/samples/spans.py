"""Token filters: which tokens of an answer train the policy, and which the value model.

Source: T-PPO (arXiv 2506.15050): policy and value are trained on different tokens.

    answer      | earlier windows | the latest window | edge |
    policy                         ^^^^^^^^^^^^^^^^^^^          unfinished: without the edge
    policy                         ^^^^^^^^^^^^^^^^^^^^^^^^^^   finished
    value        ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^   finished; else none

A prompt and earlier windows are context. The edge is where an unfinished answer's advantages depend
most on the value that stands for what follows the cut; its tokens have advantage 0, which here
means that they are not trained on: they count in no mean either. They are context from the next
step on, so nothing trains them later.
"""

from megainfer.rl.samples.sample import Sample


def policy_span(sample: Sample, edge: int) -> range:
    """Indices in the answer of the tokens that train the policy in this step.

    edge: how many of an unfinished answer's last tokens don't; all of a window that is shorter.
    """
    start = sample.length - len(sample.latest.token_ids)
    return range(start, max(start, sample.length - (0 if sample.finished else edge)))


def value_span(sample: Sample) -> range:
    """Indices in the answer of the tokens that train the value model in this step."""
    return range(sample.length if sample.finished else 0)
