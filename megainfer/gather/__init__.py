"""What an expert node serves next: the messages of which attention nodes, and how long to wait.

An expert reads its weights once a batch, so serving eight attention nodes together costs little
more than serving one: batching over attention nodes is what disaggregation is for. `Gather` says
when to wait for the others and when to stop. It holds no tensors and reads no clock: whoever calls
it says what time it is (seconds, any origin).

Each micro-batch has a cohort: the attention nodes that travel through the layers together.

- At a layer the cohort is waited for, briefly; whoever misses is dropped from it. At a step's
  first layer the wait may be as long as a step.
- Everyone else (a newcomer, one that was dropped) waits, at most about a step's time, until the
  cohort comes by the same layer, and is of it from then on. Never does the cohort wait for them.
- Whoever was dropped twice in a step is slow. To the end of that step it is served without
  waiting for the cohort, in a limited share of this node's time.

docs/pipeline.md has the reasons and the figures.
"""

from megainfer.gather.gather import Gather
from megainfer.gather.pace import GatherLimits, Wait
from megainfer.gather.place import Batch

__all__ = ["Batch", "Gather", "GatherLimits", "Wait"]
