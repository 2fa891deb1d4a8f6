"""What an attention node is made of, and what is set about it."""

from collections.abc import Callable
from dataclasses import dataclass, field

from megainfer.attention_node.compiling import GrammarQueue, NoCompiling
from megainfer.attention_node.model import StepModel
from megainfer.attention_node.scheduling.load_tuner import NoTuner, Tuner
from megainfer.attention_node.scheduling.scheduler import Scheduler
from megainfer.compute.kv_cache import KVCache
from megainfer.device import HOST, Device
from megainfer.launch.heartbeat import Page, Workload
from megainfer.m2n.mailbox import AttentionPort
from megainfer.messages.requests import FromNode

REPLY_TIMEOUT_SECONDS = 60.0
"""Far more than any batch takes to compute: an expert node that is silent for so long is hung."""


@dataclass(frozen=True, slots=True)
class NodeParts:
    """emit: takes what the front end is to hear. device: where the model computes. compiling: where
    grammars become matchers. tuner: who chooses in how many micro-batches requests decode. work:
    hears how much there is to do in a turn."""

    model: StepModel
    kv: KVCache
    scheduler: Scheduler
    port: AttentionPort
    emit: Callable[[FromNode], None]
    device: Device = HOST
    compiling: GrammarQueue = field(default_factory=NoCompiling)
    tuner: Tuner = field(default_factory=NoTuner)
    work: Workload = field(default_factory=lambda: Workload(Page()))


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """node: its number. reply_timeout: seconds after which an expert node that is silent counts as
    hung. trace: how many of its latest spans it keeps for `clock.take_spans`."""

    node: int
    reply_timeout: float = REPLY_TIMEOUT_SECONDS
    trace: int = 0
