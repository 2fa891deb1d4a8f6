"""Tokens that a model folder declares beside its tokenizer.json, as transformers 5 takes them.

tokenizer_config.json declares them by id in `added_tokens_decoder`; where it doesn't, the older
special_tokens_map.json (which goes before tokenizer_config.json then) and added_tokens.json do.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer

from megainfer.errors import ModelError

Json = Mapping[str, Any]
STANDARD = (
    *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
)
ADDED = "added_tokens.json"
EXTRA, ADDITIONAL = "extra_special_tokens", "additional_special_tokens"
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True, slots=True)
class DeclaredTokens:
    """named: by their names, such as bos_token. extra: further special ones. by_id: what is to be
    added, or is there with other flags."""

    named: Mapping[str, AddedToken | str]
    extra: Sequence[AddedToken | str]
    by_id: Mapping[int, AddedToken]
    legacy: bool = False

    @property
    def texts(self) -> dict[str, str]:
        """Those with names, which chat templates may write."""
        return {name: _text(token) for name, token in self.named.items()}

    def add_to(self, backend: Tokenizer) -> None:
        """Raises ModelError where a token gets another id than it is declared with."""
        present = {str(t.content): t for t in backend.get_added_tokens_decoder().values()}
        shown = {*map(repr, present.values())}
        there = backend.get_added_tokens_decoder().keys() if self.legacy else ()
        wanted: list[AddedToken] = [
            token
            for number, token in sorted(self.by_id.items())
            if repr(token) not in shown and number not in there
        ]
        special = {_text(token) for token in self.named.values()}
        declared = {token.content for token in self.by_id.values()}
        wanted += [
            token
            for text, token in present.items()
            if self.legacy and text in special - declared and not token.special
        ]
        known = present.keys() | {token.content for token in wanted}
        for token in (*self.named.values(), *self.extra):
            if _text(token) not in known:
                known |= {_text(token)}
                wanted.append(_special(token))
        for token in wanted:
            token.special = token.special or token.content in special
        backend.add_tokens(wanted)
        for number, token in self.by_id.items():
            if (found := backend.token_to_id(token.content)) != number:
                raise ModelError(
                    f"the token {token.content!r:.80} is {number} among the added ones, but "
                    f"{found} by tokenizer.json; save the tokenizer anew"
                )


def declared_tokens(config: Json, special_tokens_map: Json, added: Json) -> DeclaredTokens:
    """Of tokenizer_config.json, special_tokens_map.json and added_tokens.json.

    Raises ModelError for an entry that is none.
    """
    legacy = "added_tokens_decoder" not in config
    by_id = dict(_by_id(config.get("added_tokens_decoder")))
    older = {name: _as_special(value) for name, value in special_tokens_map.items()}
    merged = {**config, **older} if legacy else config
    extra, further = _extra(config, older if legacy else {})
    named = {name: _token(value) for name, value in merged.items() if name.endswith("_token")}
    named |= {name: _token(value) for name, value in further.items()}
    kept = {name: token for name, token in named.items() if token is not None}
    if legacy:
        if not all(isinstance(number, int) for number in added.values()):
            raise ModelError(f"{ADDED} must map the texts of tokens to their ids")
        special = {_text(token) for token in (*kept.values(), *extra) if token is not None}
        by_id |= {
            number: AddedToken(text, normalized=text not in special, special=text in special)
            for text, number in added.items()
        }
    flags = {token.content: token for token in by_id.values()}
    kept = {
        name: flags.get(_text(token), token) if name in STANDARD else token
        for name, token in kept.items()
    }
    others = [token for token in map(_token, extra) if token is not None]
    return DeclaredTokens(kept, others, by_id, legacy)


def _extra(config: Json, older: Json) -> tuple[Sequence[Any], Json]:
    """Special tokens without names, and those that are named where these are listed."""
    extra = config.get(EXTRA) or config.get(ADDITIONAL)
    named = extra if isinstance(extra, Mapping) else {}
    listed = None if isinstance(extra, Mapping) else extra
    if named:
        listed = older.get(ADDITIONAL, config.get(ADDITIONAL))
    if isinstance(more := older.get(EXTRA), list):
        listed = [*(listed or ()), *more]
    if listed is None:
        listed = older.get(ADDITIONAL)
    if not isinstance(listed, list | None):
        raise ModelError(f"{EXTRA} must be a list of tokens, or an object, not {listed!r:.80}")
    return listed or [], named


def _by_id(entries: Any) -> Iterator[tuple[int, AddedToken]]:
    if not isinstance(entries, Mapping | None):
        raise ModelError(f"added_tokens_decoder must be an object, not {entries!r:.80}")
    for number, entry in (entries or {}).items():
        token = _token(entry)
        if not (str(number).isdecimal() and isinstance(token, AddedToken)):
            raise ModelError(f"added_tokens_decoder has {number!r:.80}: {entry!r:.80}")
        yield int(number), token


def _token(value: Any) -> AddedToken | str | None:
    """None for what is no token, such as a flag whose name ends like theirs."""
    if isinstance(value, Mapping) and isinstance(value.get("content"), str):
        return AddedToken(value["content"], **{n: bool(value[n]) for n in FLAGS if n in value})
    return value if isinstance(value, str) else None


def _as_special(value: Any) -> Any:
    return {**value, "special": True} if isinstance(value, Mapping) else value


def _special(token: AddedToken | str) -> AddedToken:
    return AddedToken(token, special=True) if isinstance(token, str) else token


def _text(token: Any) -> str:
    if isinstance(token, Mapping):
        return str(token.get("content"))
    return str(token.content) if isinstance(token, AddedToken) else str(token)
