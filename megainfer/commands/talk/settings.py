"""What is asked for with each message, and may be changed in between."""

from collections.abc import Callable, Mapping
from typing import Any

from megainfer.errors import ConfigError

ON_OFF = {"on": True, "off": False}


def _switch(text: str) -> bool:
    if text not in ON_OFF:
        raise ValueError(text)
    return ON_OFF[text]


KINDS: Mapping[str, tuple[Callable[[str], Any], str]] = {
    **dict.fromkeys(
        (
            *("temperature", "top_p", "min_p"),
            *("repetition_penalty", "presence_penalty", "frequency_penalty"),
        ),
        (float, "a number"),
    ),
    **dict.fromkeys(("top_k", "max_tokens", "seed"), (int, "a whole number")),
    "thinking": (_switch, "on or off"),
}
"""How each is read, and in words. thinking: whether a model that can think does so."""
UNSET = ("default", "none", "-")


class Settings:
    """Those that are None are the server's to choose."""

    def __init__(self, **given: Any) -> None:
        self.values: dict[str, Any] = {name: v for name, v in given.items() if v is not None}

    def change(self, name: str, text: str) -> None:
        """Raises ConfigError for a name that isn't one, and a text that is no value of it."""
        if name not in KINDS:
            raise ConfigError(f"there is no setting {name!r}; there are {', '.join(KINDS)}")
        if text.lower() in UNSET:
            self.values.pop(name, None)
            return
        read, kind = KINDS[name]
        try:
            self.values[name] = read(text)
        except ValueError:
            raise ConfigError(f"{name} must be {kind}, or {UNSET[0]}, not {text!r}") from None

    def fields(self) -> dict[str, Any]:
        """Of a request."""
        fields = {name: value for name, value in self.values.items() if name != "thinking"}
        if "thinking" in self.values:
            fields["chat_template_kwargs"] = {"enable_thinking": self.values["thinking"]}
        return fields

    def describe(self) -> str:
        """A line each; what isn't set is the model's own."""
        return "\n".join(f"{name:<20} {self._shown(name)}" for name in KINDS)

    def _shown(self, name: str) -> str:
        value = self.values.get(name)
        if value is None:
            return UNSET[0]
        return ("on" if value else "off") if isinstance(value, bool) else str(value)
