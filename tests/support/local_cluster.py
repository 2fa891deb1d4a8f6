"""Attention and expert nodes in the test's own process, over the `local` transport."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

import torch

from megainfer.attention_node.node import AttentionNode
from megainfer.attention_node.parts import REPLY_TIMEOUT_SECONDS, NodeParts, NodeSettings
from megainfer.attention_node.process import compiling_for, load_attention, scheduler_config
from megainfer.attention_node.scheduling.scheduler import Scheduler
from megainfer.checkpoint.reader import WeightReader
from megainfer.checkpoint.switch import Switch
from megainfer.compute.backend import Backend
from megainfer.compute.selection import open_backend
from megainfer.config import BLOCK_SIZE, EngineConfig
from megainfer.expert_node.experts import ExpertModel
from megainfer.expert_node.node import ExpertNode
from megainfer.expert_node.process import load_experts
from megainfer.gather import Gather
from megainfer.launch.machine import read_machine
from megainfer.launch.plan import Plan, make_plan
from megainfer.m2n.geometry import Geometry
from megainfer.m2n.local import LocalHub
from megainfer.m2n.mailbox import AttentionPort, ExpertPort
from megainfer.messages.requests import (
    FinishReason,
    FromNode,
    RequestFailed,
    Submit,
    TokenEvent,
    TokenLogprobs,
    Tokens,
)
from megainfer.messages.routed_experts import RoutedExperts
from megainfer.topology import Membership, Placement, first_membership

DRAIN_SECONDS = 60.0
VOCABULARY = 160  # of every checkpoint that the tests write
NEW_TOKENS = 12
LENGTHS = (1, 5, 16, 17, 33, 60)


@dataclass
class Answer:
    """What the front end would have heard of one request."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    failure: str | None = None
    cached_tokens: int = 0
    weights: list[str] = field(default_factory=list)  # of each token
    stale_tokens: list[int] = field(default_factory=list)  # and of it
    routed: list[RoutedExperts] = field(default_factory=list)

    def hear(self, event: TokenEvent) -> None:
        self.tokens += event.token_ids
        self.weights += [event.weights] * len(event.token_ids)
        self.stale_tokens += [event.stale_tokens] * len(event.token_ids)
        self.logprobs += event.logprobs or []
        self.routed += [event.routed] if event.routed else []
        if event.prompt_logprobs is not None:
            assert self.prompt_logprobs is None, "a prompt is scored once"
            self.prompt_logprobs = event.prompt_logprobs
        self.finish_reason = event.finish_reason
        self.cached_tokens = max(self.cached_tokens, event.cached_tokens)


class Hub(Protocol):
    """Whatever has the ports of all nodes."""

    def attention_port(self, index: int) -> AttentionPort: ...

    def expert_port(self, index: int) -> ExpertPort: ...


class LocalCluster:
    """M attention and N expert nodes that take turns, one turn each, whenever `turn` is called.

    placement: what expert nodes load, each expert once unless given.
    """

    def __init__(
        self,
        folder: Path,
        m: int,
        num_attention: int,
        num_expert: int,
        reply_timeout: float = REPLY_TIMEOUT_SECONDS,
        placement: Placement | None = None,
        **options: Any,
    ):
        config = EngineConfig(str(folder), num_attention, num_expert, micro_batches=m, **options)
        plan = make_plan(config, folder, read_machine())
        self.plan: Plan = plan if placement is None else replace(plan, placement=placement)
        self._reply_timeout = reply_timeout
        hub = self._hub(self.plan.geometry(m))
        self.answers: dict[str, Answer] = {}
        self.attention = [self._attention(hub, node, m) for node in range(num_attention)]
        self.experts = [self._expert(hub, node, m) for node in range(num_expert)]
        self.membership = first_membership(num_attention, self.plan.placement)
        self.enter(self.membership)

    def _attention(self, hub: Hub, node: int, m: int) -> AttentionNode:
        backend = self._backend()
        model, kv = load_attention(self.plan, backend, lambda done, total: None)
        parts = NodeParts(
            model=model,
            kv=kv,
            scheduler=Scheduler(scheduler_config(self.plan, m)),
            port=hub.attention_port(node),
            emit=self._hear,
            device=backend.device,
            compiling=compiling_for(self.plan),
        )
        return AttentionNode(parts, NodeSettings(node, self._reply_timeout))

    def _hub(self, geometry: Geometry) -> Hub:
        return LocalHub(geometry)

    def _backend(self) -> Backend:
        return open_backend(self.plan.kernels, self.plan.precision)

    def _expert(self, hub: Hub, node: int, m: int) -> ExpertNode:
        gather = Gather(m, self.plan.spec.first_moe_layer)
        return ExpertNode(self._expert_model(node), gather, hub.expert_port(node))

    def _expert_model(self, node: int) -> ExpertModel:
        return load_experts(self.plan, node, self._backend(), lambda done, total: None)

    def submit(self, node: int, submit: Submit) -> None:
        self.answers[submit.request_id] = Answer()
        self.attention[node].hear(submit)

    def turn(self) -> bool:
        """One `run_once` of every member; whether anybody had work."""
        worked = [unit.run_once() for unit in self.members()]
        return any(worked)

    def members(self) -> list[AttentionNode | ExpertNode]:
        """Of the latest membership, attention nodes first."""
        attention = [self.attention[node] for node in self.membership.attention]
        return [*attention, *(self.experts[node] for node in self.membership.experts)]

    def enter(
        self,
        membership: Membership,
        order: Sequence[int] | None = None,
        switches: Sequence[Switch | None] | None = None,
    ) -> None:
        """Who is no member any more gets no more turns; the others enter, in this order (places in
        `members`) with a turn of everybody in between, or all at once. switches: to its weights,
        one a member."""
        self.membership = membership
        members = self.members()
        own = [None] * len(members) if switches is None else switches
        for place in range(len(members)) if order is None else order:
            members[place].enter(membership, own[place])
            if order is not None:
                self.turn()

    def switches_to(self, folder: Path) -> list[Switch]:
        """Each member's to the weights of another folder, loaded."""
        with WeightReader(folder) as reader:
            placement = self.membership.placement
            return [node._model.renewed(reader, placement) for node in self.members()]

    def drain(self, seconds: float = DRAIN_SECONDS) -> None:
        """Take turns until every request has ended, checking the books now and then."""
        deadline = monotonic() + seconds
        while any(list(self.attention[n].scheduler.live) for n in self.membership.attention):
            self.turn()
            assert monotonic() < deadline, "requests are stuck"
        self.check_integrity()

    def check_integrity(self) -> None:
        for node in self.attention:
            node.scheduler.check_integrity()

    def close(self) -> None:
        for node in (*self.attention, *self.experts):
            node.port.close()

    def free_blocks(self) -> list[int]:
        return [node.scheduler.counters()["free_blocks"] for node in self.attention]

    def _hear(self, message: FromNode) -> None:
        match message:
            case Tokens(events=events):
                for event in events:
                    self.answers[event.request_id].hear(event)
            case RequestFailed():
                self.answers[message.request_id].failure = message.message


def greedy_submit(
    request_id: str, prompt: Sequence[int], max_tokens: int, logprobs: int | None = None
) -> Submit:
    """Greedy decoding of exactly `max_tokens` tokens."""
    return Submit(
        request_id=request_id,
        prompt=list(prompt),
        temperature=0.0,
        top_p=1.0,
        top_k=0,
        seed=0,
        max_tokens=max_tokens,
        stop_token_ids=[],
        logprobs=logprobs,
    )


def prompts_of(seed: int, lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    """Random prompts; each starts as the longest does, so that prefixes can be shared."""
    generator = torch.Generator().manual_seed(seed)
    longest = torch.randint(VOCABULARY, (max(lengths),), generator=generator).tolist()
    tails = torch.randint(VOCABULARY, (len(lengths), 3), generator=generator).tolist()
    return [
        longest[: max(0, n - 3)] + tail[: min(n, 3)] for n, tail in zip(lengths, tails, strict=True)
    ]


def submit_all(
    cluster: LocalCluster,
    prompts: Sequence[Sequence[int]],
    tokens: int = NEW_TOKENS,
    logprobs: int | None = None,
) -> None:
    """One request a prompt, named by its position, the nodes in turn."""
    for i, prompt in enumerate(prompts):
        node = i % len(cluster.attention)
        cluster.submit(node, greedy_submit(str(i), prompt, tokens, logprobs))


def answers_of(cluster: LocalCluster, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    return [cluster.answers[str(i)].tokens for i in range(len(prompts))]


def kv_bytes(plan: Plan, tokens: int) -> int:
    """--kv-cache-memory for a cache of this many tokens."""
    return -(-tokens // BLOCK_SIZE) * BLOCK_SIZE * plan.spec.kv_bytes_per_token(4)
