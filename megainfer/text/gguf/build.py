"""A tokenizers.Tokenizer out of what a GGUF file keeps of one."""

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from megainfer.errors import ModelError
from megainfer.text.gguf.cutting import CUTTINGS, Cutting
from megainfer.text.gguf.parts import MODEL, PRE, TokenizerParts, TokenKind

BYTE_LEVEL, SENTENCE_PIECE = "gpt2", "llama"
SPACE = "▁"
"""How SentencePiece's vocabularies spell a space."""


def build_tokenizer(parts: TokenizerParts) -> Tokenizer:
    """Raises ModelError naming a kind of tokenizer, or of cutting, that isn't known."""
    if parts.model == BYTE_LEVEL:
        tokenizer, bos = _byte_level(parts), _cutting(parts).bos
    elif parts.model == SENTENCE_PIECE:
        tokenizer, bos = _sentence_piece(parts), True
    else:
        raise parts.metadata.fail(
            MODEL, f"which isn't read; supported: {BYTE_LEVEL} (BPE), {SENTENCE_PIECE} (spm)"
        )
    _add_special(tokenizer, parts)
    _surround(tokenizer, parts, bos)
    return tokenizer


def _cutting(parts: TokenizerParts) -> Cutting:
    if parts.pre not in CUTTINGS:
        raise parts.metadata.fail(
            PRE,
            f"a way of cutting texts that isn't known; known: {', '.join(CUTTINGS)}; name the "
            "model that the file was made from",
        )
    return CUTTINGS[parts.pre]


def _byte_level(parts: TokenizerParts) -> Tokenizer:
    cutting = _cutting(parts)
    merges = [_pair(parts, merge) for merge in parts.merges]
    tokenizer = _tokenizer(parts, merges, ignore_merges=cutting.whole)
    if cutting.composed:
        tokenizer.normalizer = normalizers.NFC()
    steps: list[pre_tokenizers.PreTokenizer] = [
        pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in cutting.patterns
    ]
    if cutting.digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cutting.gpt2))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pair(parts: TokenizerParts, merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    if not left or not right:
        raise ModelError(f"{parts.metadata.path}: {merge!r:.80} is no merge of two tokens")
    return left, right


def _sentence_piece(parts: TokenizerParts) -> Tokenizer:
    """SentencePiece's BPE, as one whose merges are all that make a token, the best-scored first."""
    unknown = parts.ids_of(TokenKind.UNKNOWN)
    tokenizer = _tokenizer(
        parts,
        _merges_of(parts),
        unk_token=parts.tokens[unknown[0]] if unknown else None,
        fuse_unk=True,
        byte_fallback=bool(parts.ids_of(TokenKind.BYTE)),
    )
    first = parts.space_first is not False
    steps: list[normalizers.Normalizer] = [normalizers.Replace(" ", SPACE)]
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), *steps] if first else steps
    )
    decoding = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    stripped = [decoders.Strip(" ", 1, 0)] if first else []
    tokenizer.decoder = decoders.Sequence([*decoding, *stripped])
    return tokenizer


def _merges_of(parts: TokenizerParts) -> list[tuple[str, str]]:
    """Of each token that pairs make, its pairs, those of the best parts first."""
    if not parts.scores:
        raise ModelError(f"{parts.metadata.path} has no tokenizer.ggml.scores, which spm needs")
    ids = {parts.tokens[token]: token for token in parts.ids_of(TokenKind.NORMAL)}
    found: list[tuple[float, int, int, str, str]] = []
    for text, token in ids.items():
        for cut in range(1, len(text)):
            left, right = ids.get(text[:cut]), ids.get(text[cut:])
            if left is not None and right is not None:
                found.append((-parts.scores[token], left, right, text[:cut], text[cut:]))
    return [(left, right) for *_, left, right in sorted(found)]


def _tokenizer(
    parts: TokenizerParts,
    merges: list[tuple[str, str]],
    ignore_merges: bool = False,
    unk_token: str | None = None,
    fuse_unk: bool = False,
    byte_fallback: bool = False,
) -> Tokenizer:
    """Padding behind the last token that is used has no text."""
    used = [token for token, kind in enumerate(parts.kinds) if kind != TokenKind.UNUSED]
    count = max(used, default=-1) + 1
    vocabulary = {text: token for token, text in enumerate(parts.tokens[:count])}
    try:
        model = models.BPE(
            vocabulary,
            merges,
            ignore_merges=ignore_merges,
            unk_token=unk_token,
            fuse_unk=fuse_unk,
            byte_fallback=byte_fallback,
        )
    except Exception as error:  # the only type that the library raises
        raise ModelError(f"{parts.metadata.path}: its tokenizer isn't one: {error}") from error
    return Tokenizer(model)


def _add_special(tokenizer: Tokenizer, parts: TokenizerParts) -> None:
    """What a text may spell out: control tokens, which answers leave out, and a user's own."""
    control = {*parts.ids_of(TokenKind.CONTROL, TokenKind.UNKNOWN)}
    tokenizer.add_tokens(
        [
            AddedToken(parts.tokens[token], special=token in control, normalized=False)
            for token in sorted(control | {*parts.ids_of(TokenKind.USER_DEFINED)})
        ]
    )


def _surround(tokenizer: Tokenizer, parts: TokenizerParts, bos: bool) -> None:
    """The tokens that stand before and after every text."""
    wanted = {"bos": bos, "eos": False}
    wanted |= {role: said for role, said in parts.adds.items() if said is not None}
    ids = {role: parts.roles[role] for role in wanted if wanted[role] and role in parts.roles}
    if not ids:
        return
    texts = {role: parts.tokens[token] for role, token in ids.items()}
    before, after = ([texts[role]] if role in texts else [] for role in ("bos", "eos"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *before, "$B:1", *after],
        special_tokens=[(texts[role], token) for role, token in ids.items()],
    )
