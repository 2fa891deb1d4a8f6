"""Log-probabilities of an answer's text alone: neither of its reasoning nor of what marks parts."""

from typing import Any

from server.openai.piece import Piece

Entries = list[dict[str, Any]]


class TextLogprobs:
    """Keeps those of tokens whose text hasn't come yet."""

    def __init__(self) -> None:
        self._waiting: Entries = []

    def of(self, piece: Piece) -> Entries:
        """Those of the tokens that this piece's text is made of."""
        if piece.logprobs is None:
            return []
        self._waiting += piece.logprobs["content"]
        if not piece.text:
            return []
        spelled = [bytes(entry["bytes"]) for entry in self._waiting]
        whole, text = b"".join(spelled), piece.text.encode(errors="replace")
        begin = whole.rfind(text) if piece.reasoning else whole.find(text)
        end = begin + len(text)
        if begin < 0:  # a character that came in halves, say
            begin, end = 0, len(whole)
        chosen, waiting, offset = Entries(), Entries(), 0
        for entry, own in zip(self._waiting, spelled, strict=True):
            if offset >= end:
                waiting.append(entry)
            elif offset + len(own) > begin:
                chosen.append(entry)
            offset += len(own)
        self._waiting = waiting
        return chosen
