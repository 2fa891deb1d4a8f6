"""Rotary settings of config.json, in every form in which they are written."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megainfer.errors import ModelError
from megainfer.models.config import MAX_NUMBER, Config
from megainfer.models.spec import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    NtkScaling,
    RopeScaling,
    RopeSpec,
    YarnScaling,
)

TYPES = "default, linear, llama3, yarn, longrope, dynamic with alpha"


@dataclass(frozen=True, slots=True)
class RopeForm:
    """What a family rotates. theta: where config.json has none. head_dim: channels of a head, in
    families that rotate `share` of them unless config.json says otherwise; None in those that
    rotate all of them. interleaved: see `RopeSpec`."""

    theta: float = 10_000.0
    head_dim: int | None = None
    share: float = 1.0
    interleaved: bool = False


def read_rope(
    config: Config,
    default_theta: float = 10_000.0,
    form: RopeForm | None = None,
    layer_type: str | None = None,
) -> RopeSpec:
    """Rotary settings, as transformers before 5 wrote them (`rope_theta` beside `rope_scaling`) or
    later (`rope_parameters`, in some families an object for each layer type).

    default_theta: short for a form that has nothing else. Raises ModelError for a type or a share
    of rotated channels that is not supported, naming key and value.
    """
    form = form or RopeForm(default_theta)
    reader = _Reader(config, *_parameters(config, layer_type))
    theta = reader.own.optional_number("rope_theta")
    return RopeSpec(
        theta=theta or config.number("rope_theta", form.theta),
        scaling=reader.scaling(),
        rotated=reader.rotated(form),
        interleaved=form.interleaved,
    )


def _parameters(config: Config, layer_type: str | None) -> tuple[str, Mapping[str, Any]]:
    """The key that holds the settings, and the settings of this type of layer."""
    key = "rope_scaling" if config.mapping("rope_scaling") else "rope_parameters"
    parameters = config.mapping(key)
    nested = [name for name, value in parameters.items() if isinstance(value, dict)]
    if not nested:
        return key, parameters
    if layer_type not in nested:
        raise config.fail(key, f"which says nothing of layers of type {layer_type!r:.80}")
    return key, parameters[layer_type]


@dataclass(frozen=True, slots=True)
class _Reader:
    """The settings `parameters`, found under `key`."""

    config: Config
    key: str
    parameters: Mapping[str, Any]

    @property
    def own(self) -> Config:
        return Config(self.config.path, self.parameters)

    def need(self, name: str) -> float:
        value = self.own.optional_number(name)
        if value is None:
            raise self.config.fail(self.key, f"but {name} is missing")
        return value

    def original(self) -> int:
        """The context that the model was trained on before it was stretched."""
        name = "original_max_position_embeddings"
        longest = self.config.positive("max_position_embeddings")
        return self.config.positive(name, default=self.own.positive(name, default=longest))

    def factor(self) -> float:
        """By how much the context was stretched."""
        stretched = self.config.positive("max_position_embeddings") / self.original()
        return self.own.number("factor", stretched)

    def rotated(self, form: RopeForm) -> int | None:
        share = self.own.optional_number("partial_rotary_factor")
        if share is None:
            share = self.config.number("partial_rotary_factor", form.share)
        if form.head_dim is not None and share <= 1:
            return int(form.head_dim * share)
        if share != 1:
            wanted = "at most 1" if form.head_dim else "1: this family rotates whole heads"
            raise ModelError(
                f"{self.config.path}: partial_rotary_factor is {share}, but must be {wanted}"
            )
        return None

    def scaling(self) -> RopeScaling | None:
        kind = self.parameters.get("rope_type", self.parameters.get("type", "default"))
        match kind:
            case "default":
                return None
            case "linear":
                return LinearScaling(self.need("factor"))
            case "dynamic" if self.parameters.get("alpha"):
                return NtkScaling(self.need("alpha"))
            case "llama3":
                return self.llama3()
            case "yarn":
                return self.yarn()
            case "longrope":
                return self.longrope()
        raise self.config.fail(
            self.key, f"but rope type {kind!r:.80} is not supported; supported: {TYPES}"
        )

    def llama3(self) -> Llama3Scaling:
        low, high = self.need("low_freq_factor"), self.need("high_freq_factor")
        if high < low:
            raise self.config.fail(self.key, "but high_freq_factor is less than low_freq_factor")
        return Llama3Scaling(self.need("factor"), low, high, self.original())

    def yarn(self) -> YarnScaling:
        factor = self.factor()
        return YarnScaling(
            factor=factor,
            original_max_position=self.original(),
            beta_fast=self.own.number("beta_fast", 32.0),
            beta_slow=self.own.number("beta_slow", 1.0),
            attention_factor=self.own.number("attention_factor", self._yarn_attention(factor)),
            truncate=self.own.flag("truncate", True),
        )

    def _yarn_attention(self, factor: float) -> float:
        """0.1 ln(factor) + 1; DeepSeek's mscale and mscale_all_dim each weigh the logarithm."""
        mscale, all_dim = (self.parameters.get(name) for name in ("mscale", "mscale_all_dim"))
        if not (mscale and all_dim):
            return yarn_mscale(factor)
        return yarn_mscale(factor, self.need("mscale")) / yarn_mscale(
            factor, self.need("mscale_all_dim")
        )

    def longrope(self) -> LongRopeScaling:
        original, factor = self.original(), self.factor()
        if original < 2:
            raise self.config.fail(self.key, f"whose original context of {original} can't stretch")
        stretched = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        attention = self.own.number("attention_factor", stretched)
        return LongRopeScaling(
            short_factors=self._factors("short_factor"),
            long_factors=self._factors("long_factor"),
            original_max_position=original,
            short_attention_factor=self.own.number("short_mscale", attention),
            long_attention_factor=self.own.number("long_mscale", attention),
        )

    def _factors(self, name: str) -> tuple[float, ...]:
        values = self.parameters.get(name)
        numbers = values if isinstance(values, list) else []
        if not numbers or any(not _is_factor(number) for number in numbers):
            known = f"a list of positive numbers below {MAX_NUMBER:g}"
            raise self.config.fail(self.key, f"but {name} must be {known}")
        return tuple(map(float, numbers))


def _is_factor(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value < MAX_NUMBER  # as NaN isn't


def yarn_mscale(factor: float, weight: float = 1.0) -> float:
    """What YaRN multiplies cosines and sines with for contexts stretched by `factor`."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0
