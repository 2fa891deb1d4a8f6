"""Which log-probabilities are those of an answer's text."""

from server.narration.text_logprobs import TextLogprobs
from server.openai.piece import Piece


def piece(text: str, *tokens: str | bytes, reasoning: str = "") -> Piece:
    spelled = [token if isinstance(token, bytes) else token.encode() for token in tokens]
    content = [{"token": str(token), "bytes": list(token)} for token in spelled]
    return Piece(0, text, reasoning, logprobs={"content": content, "refusal": None})


def shown(*pieces: Piece) -> list[str]:
    kept = TextLogprobs()
    chosen = [entry for piece in pieces for entry in kept.of(piece)]
    return [bytes(entry["bytes"]).decode() for entry in chosen]


def test_thoughts_and_what_marks_them_have_none() -> None:
    whole = piece("to be", "to", " be", "</think>", "\n", "to", " be", "<end>", reasoning="to be")
    assert shown(whole) == ["to", " be"]
    told = [
        piece("", "to", " be", reasoning="to be"),
        piece("", "</think>", "\n"),
        piece("or", "or"),
        piece(" not", " not"),
        piece("", "<end>"),
    ]
    assert shown(*told) == ["or", " not"]


def test_text_that_was_held_back_has_its_own() -> None:
    assert shown(piece("a", "a", " <"), piece(" <b", "b")) == ["a", " <", "b"]
    assert shown(piece("aa", "a", "a", "a")) == ["a", "a"]  # the third may be a stop string


def test_a_character_in_halves_has_both() -> None:
    kept = TextLogprobs()
    first, second = "é".encode()[:1], "é".encode()[1:]
    assert kept.of(piece("", first)) == []
    assert [entry["bytes"] for entry in kept.of(piece("é", second))] == [[195], [169]]
    assert len(kept.of(piece("\ufffd", first))) == 1


def test_nothing_where_none_were_asked_for() -> None:
    assert TextLogprobs().of(Piece(0, "a")) == []
