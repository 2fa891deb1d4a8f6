"""Which texts the compiled grammar of a schema admits, and some that it does."""

from pathlib import Path
from random import Random
from typing import Any

from megainfer.structured import grammar as grammars
from megainfer.structured.compiler import GrammarCompiler
from megainfer.structured.matcher import TokenMatcher
from megainfer.text.tokenizer import Tokenizer
from tests.support.scripted_server import write_tokenizer

EOS = 2
VOCAB = 400
LONGEST = 120  # tokens of a walk
CLOSING = frozenset('"}],')


class Admitted:
    """Of one small tokenizer whose tokens are mostly bytes."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.load(write_tokenizer(folder))
        self._compiler = GrammarCompiler(folder, VOCAB, [EOS], memory=2**24)
        self._texts = {
            token: self._tokenizer.decode([token], False)
            for token in range(self._tokenizer.vocab_size)
        }

    def matcher(self, schema: Any) -> TokenMatcher:
        """Raises RequestError where the schema is refused."""
        return self._compiler.compile(grammars.json_schema(schema, "schema"))

    def admits(self, schema: Any, text: str) -> bool:
        """Whether this may be the whole answer."""
        matcher = self.matcher(schema)
        for token in self._tokenizer.encode(text, False):
            if token not in _allowed(matcher):
                return False
            matcher.take([token])
        return EOS in _allowed(matcher)

    def walk(self, schema: Any, random: Random) -> str | None:
        """A text that it admits; None where that didn't end."""
        matcher = self.matcher(schema)
        taken: list[int] = []
        while len(taken) < LONGEST:
            allowed = _allowed(matcher)
            known = sorted(allowed & self._texts.keys() - {EOS})
            if EOS in allowed and (not known or random.random() < 0.5):
                return self._tokenizer.decode(taken, False)
            if not known:
                return None
            closing = [token for token in known if self._texts[token] in CLOSING]
            token = random.choice(closing if closing and random.random() < 0.5 else known)
            taken.append(token)
            matcher.take([token])
        return None


def _allowed(matcher: TokenMatcher) -> set[int]:
    mask = matcher.mask()
    assert mask is not None
    return {8 * i + bit for i, byte in enumerate(mask) for bit in range(8) if byte >> bit & 1}
