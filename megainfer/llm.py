"""Offline use: generate for a list of prompts, without a server."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from megainfer.config import EngineConfig, parse_micro_batches
from megainfer.console.generation_bar import GenerationBar
from megainfer.console.loading_bar import LoadingBar
from megainfer.errors import ConfigError, MegaInferError, RequestError
from megainfer.frontend.outputs import GrowingOutput, RequestOutput, spelled
from megainfer.frontend.recovery import RECOVERY_SECONDS
from megainfer.frontend.sequence_request import SequenceRequest
from megainfer.frontend.text_stream import TextStream, unfold
from megainfer.instruments.stage_clock import Span
from megainfer.launch.machine import read_machine
from megainfer.launch.new_weights import check_version, copied_weights
from megainfer.local_engine import LocalEngine
from megainfer.messages.pausing import PauseMode
from megainfer.model_folder.deployment import plan_deployment
from megainfer.sampling import MAX_N, SamplingParams
from megainfer.structured.checker import GrammarChecker
from megainfer.structured.grammar import Grammar
from megainfer.text.chat import Chat
from megainfer.text.given_prompts import GivenPrompt, Prompt, as_prompt, as_prompts
from megainfer.text.template_renderer import TemplateRenderer
from megainfer.text.token_text import TokenTexts
from megainfer.text.tokenizer import Tokenizer
from megainfer.weight_group.member import Member
from megainfer.weight_group.wishes import BroadcastWeights, Group

if TYPE_CHECKING:
    from torch import Tensor

MAX_REQUESTS_IN_FLIGHT = 512


class LLM:
    """An instance of MegaInfer of one's own; use it as a context manager.

    model: local folder, hub id, or None for the demo model. attn_gpus, ffn_gpus: attention and
    expert nodes, which are CPU processes in this version. recovery_timeout: seconds for which
    requests wait while a node that died is started again. progress: whether a terminal is shown
    how the start goes. The rest is as in `EngineConfig`.

    Raises ConfigError or ModelError before any process is started, NodeDied when all end.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        attn_gpus: int = 1,
        ffn_gpus: int = 1,
        micro_batches: int | str = "auto",
        dtype: str = "auto",
        colocated: bool = False,
        recovery_timeout: float = RECOVERY_SECONDS,
        progress: bool = True,
        **options: Any,
    ) -> None:
        config = EngineConfig(
            model=model,
            attn_gpus=attn_gpus,
            ffn_gpus=ffn_gpus,
            micro_batches=parse_micro_batches(micro_batches),
            dtype=dtype,
            colocated=colocated,
            **options,
        )
        deployment = plan_deployment(config, read_machine())
        self._plan, self._tokenizer = deployment.plan, deployment.tokenizer
        folder = self._plan.folder
        self._renderer = TemplateRenderer(self._tokenizer) if self._tokenizer else None
        self._texts = TokenTexts(self._tokenizer)
        self._end_tokens = self._plan.generation.eos_token_ids
        self._checker = GrammarChecker(folder, self._plan.spec.vocab_size, self._end_tokens)
        self._request_numbers = itertools.count()
        self._member: Member | None = None
        self._local = LocalEngine(
            self._plan, MAX_REQUESTS_IN_FLIGHT * MAX_N, recovery_timeout, LoadingBar(progress)
        )
        self.engine, self.loop = self._local.client, self._local.loop

    @classmethod
    def of(cls, config: EngineConfig) -> Self:
        """An instance with these settings. Raises what the constructor raises."""
        chosen = {field.name: getattr(config, field.name) for field in fields(config)}
        return cls(**{**chosen, "micro_batches": config.micro_batches or "auto"})

    def generate(
        self,
        prompts: GivenPrompt | Sequence[GivenPrompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        progress: bool = True,
        priority: Sequence[int] | None = None,
        use_tqdm: bool | None = None,
    ) -> list[RequestOutput]:
        """Results in the order of the prompts, each a text, a list of token ids, or vLLM's object
        with either (`{"prompt": ...}`, `{"prompt_token_ids": ...}`).

        sampling_params: one for all, or one a prompt; the model's defaults if left out. progress:
        whether a bar is drawn; use_tqdm is vLLM's name for it. priority: one a prompt; smaller is
        served first. Raises RequestError for an invalid prompt (then
        nothing of this call is generated), NodeDied when the instance fails.
        """
        requests = self._requests(as_prompts(prompts), sampling_params, priority)
        total = sum(request.params.n for _, request in requests)
        bar = GenerationBar(progress if use_tqdm is None else use_tqdm, total)
        with bar.live:
            return self._local.call(self._generate_all(requests, bar))

    def generate_each(
        self,
        prompts: Sequence[GivenPrompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> Iterator[tuple[int, RequestOutput, float]]:
        """Results as they are there: the prompt's place, its result, and when it was there, in
        seconds of `time.perf_counter`. Closing it aborts what is left. Raises as `generate`."""
        requests = self._requests(as_prompts(prompts), sampling_params, None)
        ended: SimpleQueue[tuple[int, RequestOutput, float] | None] = SimpleQueue()
        work = self._local.begin(
            self._generate_all(
                requests,
                GenerationBar(False, 0),
                lambda place, result: ended.put((place, result, perf_counter())),
            )
        )
        work.add_done_callback(lambda _: ended.put(None))
        try:
            while (one := ended.get()) is not None:
                yield one
            work.result()
        finally:
            work.cancel()

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        progress: bool = True,
        use_tqdm: bool | None = None,
    ) -> list[RequestOutput]:
        """An answer to a conversation, or to each of several, through the model's chat template."""
        several = bool(messages) and isinstance(messages[0], list | tuple)
        chats: list[Any] = list(messages) if several else [messages]
        prompts: list[GivenPrompt] = [self.chat_prompt(chat) for chat in chats]
        return self.generate(prompts, sampling_params, progress, use_tqdm=use_tqdm)

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of a conversation as the model's chat template puts it."""
        if self._tokenizer is None:
            raise RequestError("this model's folder has no tokenizer, so it has no chat template")
        if isinstance(messages, str):
            raise RequestError(
                f'a chat is a list of messages such as {{"role": "user", "content": "Hello"}}, not '
                f"{messages!r:.80}",
                "messages",
            )
        chat = Chat(messages)
        assert self._renderer is not None, "there is one where there is a tokenizer"
        return self._tokenizer.encode_chat(chat, self._local.call(self._renderer.render(chat))).ids

    def get_default_sampling_params(self) -> SamplingParams:
        """What `generation_config` and its overrides say; where they don't, `SamplingParams()`."""
        return self._plan.generation.sampling_params()

    def stats(self) -> dict[str, dict[str, Any]]:
        """Every node's counters since the start, by the node's name (`attention node 0`, …)."""
        return self._local.stats().counters

    def take_spans(self) -> dict[str, list[Span]]:
        """Every node's latest spans of work by the node's name, each only once: at most `trace`
        (see `EngineConfig`) since the last call."""
        return self._local.spans()

    def join_weight_group(self, group: Group) -> None:
        """Take part in a group of torch.distributed whose rank 0 is going to broadcast weights
        (`megainfer.weight_group.joining` has its side); returns when all have joined. One group at
        a time: another one is left.

        Raises ConfigError where that takes longer than `group.seconds`, or can't be.
        """
        self.leave_weight_group()
        member = Member(group)
        self._local.call(member.join())
        self._member = member

    def leave_weight_group(self) -> None:
        """Nothing happens where there is none."""
        if self._member is not None:
            self._local.call(self._member.leave())
            self._member = None

    def update_weights(
        self,
        source: "str | Path | Mapping[str, Tensor] | BroadcastWeights",
        *,
        version: str | None = None,
    ) -> str:
        """Have all nodes compute with other weights, from one step boundary on; returns their name
        once every node does.

        Requests may run meanwhile: they go on with the tokens that they have, whose keys and values
        are computed again. No prefix stays cached. Nodes that are started again load these weights,
        not the folder's; the files aren't needed after the call.

        source: a folder with config.json and safetensors files, one safetensors file, tensors by
        name, or what is broadcast next in the group that was joined: all of the served
        checkpoint's, under their names there. They are quantised as at load.
        version: what outputs call them (`CompletionOutput.weight_versions`), up to 256 bytes; None:
        their number.

        Raises CheckpointError for a tensor that is missing, misshapen or of another dtype,
        ModelError for another model's config.json, ConfigError for what doesn't fit, and where a
        node has died meanwhile; then the weights from before serve on, whole. NodeDied when the
        instance ends.
        """
        check_version(version)
        if isinstance(source, Mapping):
            from megainfer.checkpoint.shared import shared_weights  # which needs torch

            with shared_weights(source) as path:
                return self.update_weights(path, version=version)
        if isinstance(source, BroadcastWeights):
            source = self._local.call(self._in_group().receive(source))
        with copied_weights(self._plan, source) as weights:
            return self._local.update_weights(weights, version)

    def _in_group(self) -> Member:
        if self._member is None:
            raise ConfigError("no group brings weights: call join_weight_group first")
        return self._member

    def pause(self, mode: str = "keep", clear_cache: bool = False) -> None:
        """Have generation stand still on all nodes; returns when it does. Requests that come now
        wait for `resume`.

        mode: what becomes of those that there are. "keep": they stand still. "wait": they go on to
        their end, which is waited for. "abort": they end, with finish_reason "abort".
        clear_cache: whether prefixes are forgotten then; not with "keep".

        Raises RequestError for another mode, or while another pause is coming about.
        """
        if mode not in tuple(PauseMode):
            modes = ", ".join(PauseMode)
            raise RequestError(f"mode must be one of {modes}, not {mode!r:.40}", "mode")
        clears = clear_cache and mode != PauseMode.KEEP
        self._local.set_pause(PauseMode(mode), clears)

    def resume(self) -> None:
        """Go on after `pause`; nothing happens where it does so already."""
        self._local.set_pause(None, False)

    @property
    def is_paused(self) -> bool:
        """Whether generation stands still, or is about to."""
        return self._local.paused

    @property
    def weight_version(self) -> str:
        """The name of the weights in force; those of the folder are "0"."""
        return self._local.weights.name

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's own; None for a bare checkpoint."""
        return self._tokenizer

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """Any of them ends an answer, unless told otherwise."""
        return self._end_tokens

    @property
    def vocab_size(self) -> int:
        """Every token id is below it."""
        return self._plan.spec.vocab_size

    @property
    def on_cpu(self) -> bool:
        """Whether some node is a CPU process."""
        return self._plan.on_cpu

    @property
    def micro_batches(self) -> int:
        """How many micro-batches take turns: as asked for, or as chosen last."""
        return int(self.stats()["attention node 0"]["micro_batches"])

    def reset_prefix_cache(self) -> None:
        """Drop cached prefixes that no request uses."""
        self._local.call(self._reset())

    def shutdown(self) -> None:
        """End all processes, in bounded time; can be called twice."""
        self._local.shutdown(self._close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.shutdown()

    # --- on the caller's thread -----------------------------------------------------------------

    def _requests(
        self,
        prompts: list[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        priority: Sequence[int] | None,
    ) -> list[tuple[Prompt, SequenceRequest]]:
        one = self.get_default_sampling_params() if params is None else params
        each = [one] * len(prompts) if isinstance(one, SamplingParams) else list(one)
        for own in each:
            if not isinstance(own, SamplingParams):
                raise RequestError(f"sampling_params must be SamplingParams, not {params!r:.80}")
        if len(each) != len(prompts):
            raise RequestError(
                f"{len(each)} sampling_params were given for {len(prompts)} prompts; give one for "
                "all or one a prompt"
            )
        ranks = [0] * len(prompts) if priority is None else list(priority)
        if len(ranks) != len(prompts):
            raise RequestError(
                f"{len(ranks)} priorities were given for {len(prompts)} prompts; give one a prompt",
                "priority",
            )
        wishes = zip(prompts, each, ranks, strict=True)
        return [(prompt, self._request(prompt, own, rank)) for prompt, own, rank in wishes]

    def _request(self, prompt: Prompt, params: SamplingParams, priority: int) -> SequenceRequest:
        request = SequenceRequest(
            str(next(self._request_numbers)),
            self._token_ids(prompt),
            params,
            self._end_tokens,
            priority=priority,
            grammar=self._grammar(params),
        )
        self.engine.limits.max_tokens(request.prompt_ids, params)
        return request

    def _grammar(self, params: SamplingParams) -> Grammar | None:
        wanted = params.structured_outputs
        if wanted is not None and self._tokenizer is None:
            message = "structured_outputs: this model's folder has no tokenizer"
            raise RequestError(message, "structured_outputs")
        return None if wanted is None else wanted.to_grammar()

    def _token_ids(self, prompt: Prompt) -> list[int]:
        if not isinstance(prompt, str):
            return list(prompt)
        if self._tokenizer is None:
            raise RequestError("this model's folder has no tokenizer; give prompts as token ids")
        return self._tokenizer.encode(prompt)

    # --- on the loop's thread -------------------------------------------------------------------

    async def _generate_all(
        self,
        requests: list[tuple[Prompt, SequenceRequest]],
        bar: GenerationBar,
        ended: Callable[[int, RequestOutput], None] = lambda place, result: None,
    ) -> list[RequestOutput]:
        """ended: hears of each request by its place."""
        requests = await self._with_costs(requests)
        room = asyncio.Semaphore(MAX_REQUESTS_IN_FLIGHT)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(
                        self._generate_one(prompt, request, room, bar, partial(ended, place))
                    )
                    for place, (prompt, request) in enumerate(requests)
                ]
        except* MegaInferError as errors:
            raise _first(errors) from None
        return [task.result() for task in tasks]

    async def _with_costs(
        self, requests: list[tuple[Prompt, SequenceRequest]]
    ) -> list[tuple[Prompt, SequenceRequest]]:
        """Their grammars have been tried out. Raises RequestError."""
        tried: dict[Grammar | None, Grammar | None] = {None: None}
        for grammar in dict.fromkeys(request.grammar for _, request in requests):
            if grammar is not None:
                tried[grammar] = await self._checker.check(grammar, "structured_outputs")
        return [(p, replace(request, grammar=tried[request.grammar])) for p, request in requests]

    async def _generate_one(
        self,
        prompt: Prompt,
        request: SequenceRequest,
        room: asyncio.Semaphore,
        bar: GenerationBar,
        ended: Callable[[RequestOutput], None],
    ) -> RequestOutput:
        async with room:
            sequences = unfold(request)
            answers = {s.request_id: GrowingOutput(i) for i, s in enumerate(sequences)}
            with TextStream.open(self.engine, self._tokenizer, sequences) as stream:
                async for delta in stream:
                    answers[delta.request_id].add(delta)
                    bar.add(len(delta.token_ids), delta.finish_reason is not None)
        result = self._output(prompt, request, list(answers.values()))
        ended(result)
        return result

    async def stream(
        self, prompt: GivenPrompt, params: SamplingParams | None = None, priority: int = 0
    ) -> AsyncIterator[RequestOutput]:
        """What there is of a prompt's answers, time and again, the last time whole; on `loop` only.

        Closing it aborts the request. Raises as `generate`.
        """
        given = as_prompt(prompt)
        ((_, request),) = self._requests([given], params, [priority])
        if request.grammar is not None:
            await self._checker.check(request.grammar, "structured_outputs")
        sequences = unfold(request)
        answers = {s.request_id: GrowingOutput(i) for i, s in enumerate(sequences)}
        with TextStream.open(self.engine, self._tokenizer, sequences) as deltas:
            async for delta in deltas:
                answers[delta.request_id].add(delta)
                yield self._output(given, request, list(answers.values()))

    def _output(
        self, prompt: Prompt, request: SequenceRequest, answers: list[GrowingOutput]
    ) -> RequestOutput:
        scores, text_of = answers[0].prompt_logprobs, self._texts.text_of
        return RequestOutput(
            request_id=request.request_id,
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_token_ids=request.prompt_ids,
            outputs=[answer.output(text_of) for answer in answers],
            num_cached_tokens=max(answer.cached_tokens for answer in answers),
            finished=all(answer.ended for answer in answers),
            prompt_logprobs=None
            if scores is None
            else [None, *(spelled(row, text_of) for row in scores)],
        )

    async def _reset(self) -> None:
        self.engine.reset_prefix_cache()

    async def _close(self) -> None:
        if self._member is not None:
            await self._member.leave()
        await self._checker.close()
        if self._renderer is not None:
            await self._renderer.close()
        await self.engine.close()


def _first(errors: BaseExceptionGroup[MegaInferError]) -> MegaInferError:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
