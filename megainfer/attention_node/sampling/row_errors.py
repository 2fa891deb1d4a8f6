"""Why no token can be chosen for some rows of a batch, whose others have theirs."""

from megainfer.errors import MegaInferError


class RowError(MegaInferError):
    """Some rows of a batch, `rows`, can't be sampled from; client_error: they ask for too much.
    spoiled: what was computed of them before isn't to be used again either."""

    client_error = False
    spoiled = False

    def __init__(self, message: str, rows: tuple[int, ...]) -> None:
        super().__init__(message)
        self.rows = rows


class NonFiniteLogits(RowError):
    """The model gave NaN or infinite logits; of: what the rows are counted in."""

    spoiled = True  # keys and values of their prompts may not be finite, wherever it began

    def __init__(self, rows: tuple[int, ...], of: str = "batch") -> None:
        super().__init__(
            f"the model's logits are not finite in rows {', '.join(map(str, rows))} of the {of}: "
            "its weights or its computation overflowed (a wider dtype may help)",
            rows,
        )


class NothingAllowed(RowError):
    """A request's own wishes leave it no token."""

    client_error = True

    def __init__(self, rows: tuple[int, ...]) -> None:
        super().__init__(
            "no token is left to choose: allowed_token_ids, bad_words, min_tokens or a grammar "
            "forbid every one; allow at least one more",
            rows,
        )


class OverflowedEdits(RowError):
    """A request's own wishes take logits out of what float32 holds."""

    client_error = True

    def __init__(self, rows: tuple[int, ...]) -> None:
        super().__init__(
            "the request's penalties or its logit_bias made logits infinite: ask for less (a "
            "repetition_penalty nearer to 1, a smaller bias)",
            rows,
        )


class NoSuchToken(RowError):
    """What was drawn is no token; ours to mend."""

    def __init__(self, drawn: list[int], rows: tuple[int, ...], vocabulary: int) -> None:
        super().__init__(
            f"drew {', '.join(map(str, drawn))} from a vocabulary of {vocabulary}: an error of the "
            "kernels (--kernels reference does without them)",
            rows,
        )
