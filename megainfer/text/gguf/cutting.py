"""How texts are cut into words before they are merged, by the names that GGUF files have for it.

The expressions are those of the tokenizer.json of the models that each name stands for.
"""

from collections.abc import Mapping
from dataclasses import dataclass

ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = rf"{ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+"
BY_THREE_DIGITS = rf"{WORDS}|\p{{N}}{{1,3}}|{REST}"
BY_DIGIT = rf"{WORDS}|\p{{N}}|{REST}"

UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
BEFORE = r"[^\r\n\p{L}\p{N}]?"
REST_WITH_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = (
    rf"{BEFORE}[{UPPER}]*[{LOWER}]+{ENDINGS}?|{BEFORE}[{UPPER}]+[{LOWER}]*{ENDINGS}?"
    rf"|\p{{N}}{{1,3}}|{REST_WITH_SLASH}"
)
TEKKEN = rf"{BEFORE}[{UPPER}]*[{LOWER}]+|{BEFORE}[{UPPER}]+[{LOWER}]*|\p{{N}}|{REST_WITH_SLASH}"

CJK = "\u4e00-\u9fa5"
DEEPSEEK_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293"
    "\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c"
    "\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5"
    "\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59"
    "\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc"
    "\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107"
    "\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee"
    "\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e"
    "\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f"
    "\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)
"""Of scripts with two cases."""
DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{DEEPSEEK_LETTERS}]+",
    r"\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+$",
    f"[{CJK}\u0800-\u4e00\uac00-\ud7ff]+",
    r"\p{N}+",
)
DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    f"[{CJK}\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)


@dataclass(frozen=True, slots=True)
class Cutting:
    """patterns: each cuts what those before it left. digits: each digit is a word of its own.
    gpt2: GPT-2's expression comes last. composed: texts are brought into Unicode's form C first.
    whole: a word that is a token is that token, whatever its merges. bos: whether a beginning token
    stands before every text where the file doesn't say."""

    patterns: tuple[str, ...] = ()
    digits: bool = False
    gpt2: bool = False
    composed: bool = False
    whole: bool = False
    bos: bool = False


_LLAMA_3 = Cutting((BY_THREE_DIGITS,), whole=True, bos=True)
_QWEN_2 = Cutting((BY_DIGIT,), composed=True)
_O200K = Cutting((O200K,))
_GLM_4 = Cutting((BY_THREE_DIGITS,))
_DIGITS = Cutting(digits=True, gpt2=True)

CUTTINGS: Mapping[str, Cutting] = {
    "chatglm-bpe": _GLM_4,
    "deepseek-llm": Cutting(DEEPSEEK_LLM),
    "deepseek-v3": Cutting(DEEPSEEK_V3),
    "glm4": _GLM_4,
    "gpt-2": Cutting(gpt2=True),
    "gpt-4o": _O200K,
    "llama-bpe": _LLAMA_3,
    "llama-v3": _LLAMA_3,
    "llama3": _LLAMA_3,
    "minimax-m2": _O200K,
    "olmo": Cutting(gpt2=True, composed=True),
    "qwen2": _QWEN_2,
    "refact": _DIGITS,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "tekken": Cutting((TEKKEN,), whole=True, bos=True),
}
"""By tokenizer.ggml.pre."""
