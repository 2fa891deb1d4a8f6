"""From a checked request to its running generation: what all addresses that generate share."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from megainfer.errors import RequestError, cited
from megainfer.frontend.engine_client import EngineClient
from megainfer.frontend.sequence_request import SequenceRequest
from megainfer.frontend.text_stream import TextStream, unfold
from megainfer.sampling import SamplingParams
from megainfer.sharing.budgets import Budgets
from megainfer.sharing.pauses import Pauses
from megainfer.structured.checker import GrammarChecker
from megainfer.structured.grammar import Grammar
from megainfer.text.template_renderer import TemplateRenderer
from megainfer.text.token_text import TokenTexts
from megainfer.text.tokenizer import Tokenizer
from server.http.client import current_client
from server.http.connection import while_client_stays
from server.http.errors import ApiError, ErrorReport
from server.http.long_work import LongWork
from server.openai.answer import Answer
from server.openai.answer_options import AnswerOptions
from server.openai.prompts import Prompt, PromptEncoder
from server.openai.protocol import ChatRequest, CompletionRequest, SamplingFields
from server.openai.reader import reader_maker
from server.openai.request_size import check_copies, check_logprobs, request_bytes, routing_bytes
from server.openai.served_model import ServedModel
from server.openai.shapes import ChatShape, CompletionShape, Shape
from server.openai.structured import Wanted
from server.openai.syntax import AnswerSyntax
from server.openai.tools import ToolUse, tool_use
from server.openai.wishes.not_offered import CHAT, COMPLETION, refuse_not_offered
from server.openai.wishes.thinking import SWITCHES
from server.parsing.harmony import FINAL

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's, where /v1/completions leaves max_tokens out


@dataclass(frozen=True, slots=True)
class Generation:
    """A request on its way: its text as it comes, and what becomes of it. Close `deltas`."""

    deltas: TextStream
    answer: Answer
    options: AnswerOptions


class Generator:
    """Starts generations, over one engine and one model."""

    def __init__(
        self,
        engine: EngineClient,
        tokenizer: Tokenizer | None,
        model: ServedModel,
        budgets: Budgets,
        checker: GrammarChecker | None = None,
        renderer: TemplateRenderer | None = None,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._texts = TokenTexts(tokenizer)
        self._model = model
        self._syntax = AnswerSyntax.of(model.syntax, tokenizer)
        self._checker = checker
        self._isolates_caches = budgets.isolates_caches
        self.long_work = LongWork()
        self.encoder = PromptEncoder(
            tokenizer, model.max_model_len, self.long_work, budgets.prompt_characters, renderer
        )

    async def completion(self, body: CompletionRequest) -> Generation:
        """Continue one or several prompts. Raises RequestError, ApiError, Overloaded, NodeDied."""
        self.served_name(body.model)
        refuse_not_offered(body.model_extra or {}, COMPLETION)
        options = body.answer_options()
        params = self.sampling(body)
        check_copies(params, len(body.prompt))
        grammar = await self._grammar(body.wanted_shape())
        prompts = await self.encoder.completion(body)
        default = DEFAULT_COMPLETION_TOKENS
        limited = self._limited(params, prompts, default)
        return await self._start(body, CompletionShape(), options, limited, grammar)

    def sampling(self, body: SamplingFields) -> SamplingParams:
        """By which its answers are made. Raises RequestError."""
        return body.sampling(self._model.defaults, body.limit, self._model.logprobs_mode)

    async def chat(self, body: ChatRequest, shortened: bool = False) -> Generation:
        """Answer the last message of a chat. shortened: to what the context leaves room for, where
        more was asked. Raises as `completion`."""
        self.served_name(body.model)
        refuse_not_offered(body.model_extra or {}, CHAT)
        use = self.tool_use(body)
        options = body.answer_options()
        params = self._spelling_out(self.sampling(body), use)
        check_copies(params, 1)
        grammar = await self._grammar(_one_shape(body.wanted_shape(), use.shape))
        prompt = await self.encoder.chat(body, use.tools)
        shaped = grammar is not None
        thinking = prompt.thinking or self._syntax.always_thinks
        if body.wants_thinking is False:
            self._check_switch(thinking, shaped)
        if grammar is not None and thinking and self._syntax.thinks:
            grammar = self._after_thinking(grammar)
        if shaped and self._syntax.channels:
            prompt = self._opened(prompt)
        shape = ChatShape(reader_maker(self._syntax, use, shaped))
        if shortened and params.max_tokens is not None:
            params = replace(params, max_tokens=min(params.max_tokens, self._room(prompt)))
        limited = self._limited(params, [prompt])
        return await self._start(body, shape, options, limited, grammar)

    async def chat_tokens(self, body: ChatRequest) -> list[int]:
        """The prompt of a chat. Raises as `chat`."""
        return (await self.encoder.chat(body, self.tool_use(body).tools)).ids

    def tool_use(self, body: ChatRequest) -> ToolUse:
        """What a request says of tools. Raises RequestError where this model can't do it."""
        use = tool_use(body.tools, body.tool_choice, body.parallel_tool_calls)
        if use.tools and not use.must and self._syntax.calls is None:
            raise RequestError(
                "tool_choice auto needs to know how this model writes calls, and its chat template "
                "doesn't show it; start the server with --tool-call-parser, or send tool_choice "
                "none, required or a function",
                "tool_choice",
            )
        return use

    def served_name(self, name: str | None) -> str:
        """The name to answer under. Raises ApiError for a model that isn't served."""
        if name is None:
            return self._model.names[0]
        if name not in self._model.names:
            served = ", ".join(self._model.names)
            message = f"the model {cited(name, 200)} isn't served here; served: {served}"
            raise ApiError(ErrorReport(404, message, param="model", code="model_not_found"))
        return name

    async def _start(
        self,
        body: SamplingFields,
        shape: Shape,
        options: AnswerOptions,
        prompts: list[tuple[Prompt, SamplingParams]],
        grammar: Grammar | None,
    ) -> Generation:
        pauses = Pauses()
        lengths = [(len(prompt.ids), params) for prompt, params in prompts]
        size = request_bytes(lengths, self._model.max_model_len, grammar)
        size += routing_bytes(lengths, self._model.max_model_len, self._model.routing_bytes)
        client = current_client.get()
        check_logprobs(lengths, self._model.max_model_len)
        # Before they are made: prompts times n may be a quarter of a million.
        self._engine.check_room(sum(params.n for _, params in prompts), client, size)
        request_id = f"{shape.prefix}-{uuid.uuid4().hex}"
        sequences = [
            sequence
            for position, (prompt, params) in enumerate(prompts)
            for sequence in unfold(
                SequenceRequest(
                    f"{request_id}-{position}",
                    prompt.ids,
                    params,
                    self._model.defaults.eos_token_ids,
                    priority=body.priority or 0,
                    grammar=grammar,
                    cache_salt=self._salt(body, client),
                )
            )
        ]
        head = {
            "id": request_id,
            "model": self.served_name(body.model),
            "system_fingerprint": self._model.fingerprint,
        }
        given = [prompt for prompt, _ in prompts]
        await pauses.take()
        answer = Answer(shape, head, given, sequences, options, self._texts)
        continues = shape.continues_prompt
        await pauses.take()
        deltas = TextStream.open(
            self._engine, self._tokenizer, sequences, continues, client=client, size=size
        )
        return Generation(deltas, answer, options)

    def _salt(self, body: SamplingFields, client: str) -> str:
        """Of the prefix cache: the request's own, and that of its client where these are apart."""
        own = body.cache_salt or ""
        return f"{client}\n{own}" if self._isolates_caches else own

    async def _grammar(self, wanted: Wanted | None) -> Grammar | None:
        if wanted is None:
            return None
        if self._checker is None:
            message = f"{wanted.param}: structured output needs the model's folder and tokenizer"
            raise RequestError(message, wanted.param)
        checking = self._checker.check(wanted.grammar, wanted.param, current_client.get())
        return await while_client_stays(checking)

    def _check_switch(self, thinking: bool, shaped: bool) -> None:
        """Raises RequestError where the model thinks all the same."""
        syntax, template = self._syntax, self._tokenizer.chat_template if self._tokenizer else ""
        knows = any(name in template for name in SWITCHES)
        may = syntax.thinks or (syntax.channels and not shaped)
        if thinking or (may and not knows):
            raise RequestError(
                "this model thinks first, and its chat template can't turn that off; leave out "
                "what says that it isn't to",
                "enable_thinking",
            )

    def _opened(self, prompt: Prompt) -> Prompt:
        """A model that answers in channels begins with the answer itself, without thinking."""
        assert self._tokenizer is not None, "there is a grammar"
        opening = self._tokenizer.encode(FINAL, add_special_tokens=False)
        return replace(prompt, ids=[*prompt.ids, *opening])

    def _after_thinking(self, grammar: Grammar) -> Grammar:
        end = self._syntax.end_token
        if end is None:
            instead = 'send chat_template_kwargs {"enable_thinking": false}'
            if self._syntax.always_thinks:
                instead = "start the server with --reasoning-parser qwen3 if it needn't think"
            raise RequestError(
                "this model thinks first and ends that with several tokens, so structured output "
                f"isn't offered; {instead}",
                "response_format",
            )
        return msgspec.structs.replace(grammar, after=end)

    def _spelling_out(self, params: SamplingParams, use: ToolUse) -> SamplingParams:
        """With special tokens where the notation of calls, of reasoning or of the whole answer has
        some."""
        syntax = self._syntax
        of_calls = bool(use.tools) and not use.must and syntax.silent_calls
        special = of_calls or syntax.channels or syntax.silent_thinks
        return replace(params, skip_special_tokens=False) if special else params

    def _room(self, prompt: Prompt) -> int:
        """Tokens that the context has left."""
        return max(self._model.max_model_len - len(prompt.ids), 1)

    def _limited(
        self, params: SamplingParams, prompts: Sequence[Prompt], default: int | None = None
    ) -> list[tuple[Prompt, SamplingParams]]:
        """Within the server's own limit. default: of a request that doesn't say how long."""
        # Each is checked once more when it is made; most requests have theirs already.
        made: dict[int | None, SamplingParams] = {params.max_tokens: params}
        limited = []
        for prompt in prompts:
            limit = self._limit(params.max_tokens, prompt, default)
            if limit not in made:
                made[limit] = replace(params, max_tokens=limit)
            limited.append((prompt, made[limit]))
        return limited

    def _limit(self, asked: int | None, prompt: Prompt, default: int | None) -> int:
        most = self._model.defaults.max_new_tokens
        if asked is None:
            room = self._room(prompt)
            asked = room if default is None else min(room, default)
        return asked if most is None else min(asked, most)


def _one_shape(asked: Wanted | None, of_tools: Wanted | None) -> Wanted | None:
    if asked is not None and of_tools is not None:
        message = f"{asked.param} and a tool_choice that asks for a call exclude each other"
        raise RequestError(message, asked.param)
    return asked or of_tools
