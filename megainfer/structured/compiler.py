"""Grammars to matchers: the one place that knows llguidance's notations and limits.

Its own fuel bounds what a grammar may cost, to compile and at each token; a grammar that needs
more is refused.
"""

import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark

from megainfer.errors import RequestError
from megainfer.structured.compilable.document import compilable
from megainfer.structured.grammar import Grammar, GrammarKind
from megainfer.structured.matcher import TokenMatcher
from megainfer.structured.refusals import in_words
from megainfer.text.tokenizer import load_tokenizer

WHITE_SPACE = r"( |\n[ \t]{0,16})?"
"""Between the parts of JSON: a space, or a line end and an indentation. Where more is allowed, a
weak model may write white space until its limit."""
LEXER_FUEL, STEP_FUEL, STEP_ITEMS = 1_000_000, 100_000, 25_000
"""About 20 ms for all of the lexer, 7 ms and 1 ms at most for one token."""
MAX_SYMBOLS = 100_000
UNKNOWN_COST = 2**20


class GrammarCompiler:
    """Compiles for one tokenizer, and keeps the latest grammars, of at most `memory` bytes.

    Not for several threads at once.

    Raises RequestError where the model names no end token, has no tokenizer, or has one that
    grammars can't be compiled for.
    """

    def __init__(
        self, folder: Path, vocab_size: int, eos_token_ids: Sequence[int], memory: int
    ) -> None:
        self._vocab_size = vocab_size
        self._tokenizer = _load(folder, vocab_size, eos_token_ids)
        self._memory = memory
        self._kept: OrderedDict[Grammar, TokenMatcher] = OrderedDict()

    def compile(self, grammar: Grammar) -> TokenMatcher:
        """A matcher at the beginning of a text. Raises RequestError saying what is wrong."""
        kept = self._kept.pop(grammar, None)
        if kept is None:
            self._make_room(grammar.cost or UNKNOWN_COST)
            kept = self.build(grammar)
        self._kept[grammar] = kept
        return kept.copy()

    def _make_room(self, cost: int) -> None:
        taken = sum(grammar.cost or UNKNOWN_COST for grammar in self._kept)
        while self._kept and taken + cost > self._memory:
            grammar, _ = self._kept.popitem(last=False)
            taken -= grammar.cost or UNKNOWN_COST

    def build(self, grammar: Grammar) -> TokenMatcher:
        """One that isn't kept. Raises as `compile`."""
        limits = LLParserLimits(
            initial_lexer_fuel=LEXER_FUEL,
            step_lexer_fuel=STEP_FUEL,
            step_max_items=STEP_ITEMS,
            max_grammar_size=MAX_SYMBOLS,
            verbose_errors=False,
        )
        try:
            text = _in_library_notation(grammar)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"the {grammar.kind} can't be read: {error}") from error
        matcher = LLMatcher(self._tokenizer, text, log_level=0, limits=limits)
        matcher.compute_bitmask()
        if matcher.is_error():
            raise RequestError(f"the {grammar.kind} can't be used: {in_words(matcher.get_error())}")
        return TokenMatcher(matcher, self._vocab_size, grammar.after)


def _in_library_notation(grammar: Grammar) -> str:
    match grammar.kind:
        case GrammarKind.JSON_SCHEMA:
            schema = compilable(json.loads(grammar.text))
            return LLMatcher.grammar_from_json_schema(
                json.dumps(schema), overrides={"whitespace_pattern": WHITE_SPACE}
            )
        case GrammarKind.REGEX:
            return LLMatcher.grammar_from_regex(grammar.text)
        case GrammarKind.LARK:
            return LLMatcher.grammar_from_lark(_lark(grammar.text))


def _lark(text: str) -> str:
    """Of either notation. Raises ValueError."""
    try:
        return any_to_lark(text)
    except Exception as error:  # it raises just that, say where a rule isn't there
        raise ValueError(str(error)) from error


def _load(folder: Path, vocab_size: int, eos_token_ids: Sequence[int]) -> LLTokenizer:
    ends = [token for token in eos_token_ids if 0 <= token < vocab_size]
    if not ends:
        raise RequestError("this model names no end token, so structured output can't end")
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise RequestError("this model's folder has no tokenizer; structured output needs it")
    size = max(vocab_size, tokenizer.vocab_size)
    vocabulary = tokenizer.vocabulary()
    if isinstance(vocabulary, str):
        try:
            return LLTokenizer(vocabulary, n_vocab=size, eos_token=ends)
        except ValueError as error:  # a decoder that llguidance doesn't know
            reason = f"structured output can't be had with this model's tokenizer: {error}"
            raise RequestError(reason) from error
    # Its type declarations leave this constructor out.
    made: LLTokenizer = LLTokenizer.from_tiktoken(  # type: ignore[attr-defined]
        encoder=dict(vocabulary.ids),
        special_tokens=dict(vocabulary.special),
        pattern=vocabulary.pattern,
        eos_token=ends,
        n_vocab=size,
    )
    return made
