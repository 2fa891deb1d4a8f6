"""Answers as sequences of blocks."""

from server.narration.blocks import Block, Blocks, Kind
from server.openai.piece import Piece
from server.openai.reader import CallPiece


def blocks_of(*pieces: Piece) -> list[Block]:
    blocks = Blocks()
    for piece in pieces:
        list(blocks.add(piece))
    list(blocks.close())
    return blocks.all


def test_a_piece_may_end_a_call_and_go_on_with_text() -> None:
    begun = Piece(0, "", calls=(CallPiece(0, "call_1", "f", '{"a": '),))
    ended = Piece(0, "So.", calls=(CallPiece(0, None, None, "1}"),))
    call, text = blocks_of(begun, ended)
    assert (call.kind, call.call_id, call.name, call.text) == (Kind.CALL, "call_1", "f", '{"a": 1}')
    assert (text.kind, text.text) == (Kind.TEXT, "So.")


def test_a_piece_may_end_a_call_and_begin_another() -> None:
    begun = Piece(0, "", calls=(CallPiece(0, "call_1", "f", "{"),))
    both = Piece(0, "", calls=(CallPiece(0, None, None, "}"), CallPiece(1, "call_2", "g", "{}")))
    assert [(block.name, block.text) for block in blocks_of(begun, both)] == [
        ("f", "{}"),
        ("g", "{}"),
    ]
