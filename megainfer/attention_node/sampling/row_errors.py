"""Why no token can be chosen for some rows of a batch, whose others have theirs."""

from megainfer.errors import MegaInferError


class RowError(MegaInferError):
    """Some rows of a batch, `rows`, can't be sampled from; client_error: they ask for too much."""

    client_error = False

    def __init__(self, message: str, rows: tuple[int, ...]) -> None:
        super().__init__(message)
        self.rows = rows


class NonFiniteLogits(RowError):
    """The model gave NaN or infinite logits; of: what the rows are counted in."""

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
