"""vLLM's metrics, name for name under `megainfer:`; an engine is an attention node."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client.core import Metric

from megainfer.instruments.distribution import Distribution
from server.operate.metrics.families import counter, distribution_of, gauge, histogram
from server.operate.metrics.requests import EngineTotals
from server.operate.nodes import NodeState

LABELS = ("model_name", "engine")

GAUGES = {
    "num_requests_running": ("running", "Requests that hold KV blocks."),
    "num_requests_waiting": ("waiting", "Requests that wait for KV blocks, a place or a grammar."),
    "micro_batches": ("micro_batches", "Micro-batches in which requests decode now."),
}
NODE_COUNTERS = {
    "num_preemptions": ("preemptions", "Requests that gave up their KV blocks to older ones."),
    "prefix_cache_queries": ("prefix_queried_tokens", "Tokens looked up in the prefix cache."),
    "prefix_cache_hits": ("prefix_hit_tokens", "Tokens found in the prefix cache."),
    "steps": ("steps", "Steps, each one pass of one micro-batch through all layers."),
}
HISTOGRAMS: dict[str, tuple[Callable[[EngineTotals], Distribution], str]] = {
    "time_to_first_token_seconds": (
        lambda own: own.first_token,
        "From submission to the first token.",
    ),
    "inter_token_latency_seconds": (
        lambda own: own.between_tokens,
        "Between two tokens of a request that follow each other.",
    ),
    "request_time_per_output_token_seconds": (
        lambda own: own.per_output_token,
        "A request's time from its first token to its last, by each token after the first.",
    ),
    "e2e_request_latency_seconds": (
        lambda own: own.end_to_end,
        "From submission to the last token.",
    ),
    "request_queue_time_seconds": (
        lambda own: own.queued,
        "From arrival at the attention node to the first step.",
    ),
    "request_inference_time_seconds": (
        lambda own: own.inference,
        "From the first step to the last token.",
    ),
    "request_prefill_time_seconds": (
        lambda own: own.prefill,
        "From the first step to the first token.",
    ),
    "request_decode_time_seconds": (
        lambda own: own.decode,
        "From the first token to the last.",
    ),
    "request_prompt_tokens": (lambda own: own.prompt_lengths, "Tokens of a prompt."),
    "request_prefill_kv_computed_tokens": (
        lambda own: own.computed_prompt_lengths,
        "Tokens of a prompt that were not in the prefix cache.",
    ),
    "request_generation_tokens": (lambda own: own.output_lengths, "Tokens of an answer."),
    "request_max_num_generation_tokens": (
        lambda own: own.longest_outputs,
        "Tokens of the longest of a prompt's n answers.",
    ),
    "request_params_n": (lambda own: own.n, "The parameter n."),
    "request_params_max_tokens": (
        lambda own: own.max_tokens,
        "The parameter max_tokens, or what the context left.",
    ),
}


def engine_families(
    model: str, nodes: Sequence[NodeState], cache_config: Mapping[str, str]
) -> Iterator[Metric]:
    """What attention nodes said last."""
    seen = [((model, str(node.index)), node.counters) for node in nodes]
    for name, (source, text) in GAUGES.items():
        yield gauge(name, text, LABELS, [(at, said.get(source, 0)) for at, said in seen])
    for name, (source, text) in NODE_COUNTERS.items():
        yield counter(name, text, LABELS, [(at, said.get(source, 0)) for at, said in seen])
    yield _kv_usage(model, nodes)
    steps = [(at, distribution_of(said, "step_tokens")) for at, said in seen]
    known = [(at, distribution) for at, distribution in steps if distribution is not None]
    yield histogram("iteration_tokens_total", "Tokens computed in a step.", LABELS, known)
    info = [([*cache_config.values(), str(node.index)], 1.0) for node in nodes]
    text = "How KV blocks are kept; num_gpu_blocks counts an engine's blocks, wherever they lie."
    yield gauge("cache_config_info", text, [*cache_config, "engine"], info)


def request_families(model: str, engines: Mapping[int, EngineTotals]) -> Iterator[Metric]:
    """What an API server counted of its requests, by the engine that served them."""
    own = [((model, str(node)), totals) for node, totals in sorted(engines.items())]
    yield from _token_counters(own)
    for name, (read, text) in HISTOGRAMS.items():
        yield histogram(name, text, LABELS, [(at, read(totals)) for at, totals in own])


def kv_usage(node: NodeState) -> float:
    """The share of KV blocks that requests hold; 0 before the node has said anything."""
    blocks = node.counters.get("num_blocks", 0)
    return 1.0 - node.counters["free_blocks"] / blocks if blocks else 0.0


def _kv_usage(model: str, nodes: Sequence[NodeState]) -> Metric:
    rows = [((model, str(node.index)), kv_usage(node)) for node in nodes]
    return gauge("kv_cache_usage_perc", "Share of KV blocks in use; 1 is all.", LABELS, rows)


def _token_counters(own: Sequence[tuple[tuple[str, str], EngineTotals]]) -> Iterator[Metric]:
    yield counter(
        "prompt_tokens",
        "Tokens of prompts, cached ones included; counted with the first token of the answer.",
        LABELS,
        [(at, totals.prompt_tokens) for at, totals in own],
    )
    yield counter(
        "prompt_tokens_cached",
        "Tokens of prompts that the prefix cache had.",
        LABELS,
        [(at, totals.cached_tokens) for at, totals in own],
    )
    yield counter(
        "prompt_tokens_by_source",
        "Tokens of prompts, by where their keys and values came from.",
        (*LABELS, "source"),
        [
            ((*at, source), number)
            for at, totals in own
            for source, number in (
                ("local_compute", totals.prompt_tokens - totals.cached_tokens),
                ("local_cache_hit", totals.cached_tokens),
            )
        ],
    )
    yield counter(
        "generation_tokens",
        "Tokens generated.",
        LABELS,
        [(at, totals.generation_tokens) for at, totals in own],
    )
    yield counter(
        "request_success",
        "Requests that ended, by reason.",
        (*LABELS, "finished_reason"),
        [
            ((*at, reason), number)
            for at, totals in own
            for reason, number in totals.finished.items()
        ],
    )
