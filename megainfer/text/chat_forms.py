"""In which form a chat template wants messages, found out by showing it some.

Templates are written for one client's way of giving messages, and fail, or leave things out, with
another's. What a template wants shows in what it makes of two forms of the same.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from megainfer.errors import RequestError
from megainfer.text.call_ids import nine_letters, numbered

Message = Mapping[str, Any]
Render = Callable[[Sequence[Message]], str]
"""Of a chat without tools; raises RequestError."""
NAME, KEY, VALUE, LONG_ID = (
    "mega_function",
    "mega_key",
    "mega_value",
    "call_0123456789abcdef01234567",
)
NINE, FIRST, SECOND = "abcdefgh1", "mega_first", "mega_second"
APART = "\n\n"
"""Between the texts of messages that become one."""


class Ids(Enum):
    ANY = "any"
    NINE = "nine letters or digits"
    NUMBERED = "functions.f:0"


class Systems(Enum):
    """What a template makes of a system message that isn't the first of all."""

    ANYWHERE = "anywhere"
    FIRST = "only as the first message"
    NONE = "nowhere"


@dataclass(frozen=True, slots=True)
class ChatForms:
    """arguments_as_text: of calls; else objects. none_without_content: beside calls, for content;
    else an empty text. ids: of calls. systems: where system messages may stand; more_systems: and
    several in a row. thinks_and_speaks: an assistant may have thoughts (`thinking`) beside
    content and calls. one_call: a message holds one at most. alternates: two messages of a user's,
    or of an assistant's, may not follow one another."""

    arguments_as_text: bool = False
    none_without_content: bool = False
    ids: Ids = Ids.ANY
    systems: Systems = Systems.ANYWHERE
    more_systems: bool = True
    thinks_and_speaks: bool = True
    one_call: bool = False
    alternates: bool = False

    def fit(self, messages: Sequence[Message]) -> list[Message]:
        """The same chat in these forms."""
        made = self._with_systems(messages)
        if self.alternates:
            made = _joined(made, ("user", "assistant"))
        if self.one_call:
            made = _one_by_one(made)
        new_ids = numbered(made) if self.ids is Ids.NUMBERED else {}
        return [self._fitted(message, new_ids) for message in made]

    def _with_systems(self, messages: Sequence[Message]) -> list[Message]:
        first = next((n for n, m in enumerate(messages) if m["role"] != "system"), len(messages))
        head, rest = list(messages[:first]), list(messages[first:])
        if self.systems is Systems.ANYWHERE and self.more_systems:
            return [*head, *rest]
        head = _joined(head, ("system",))
        if self.systems is not Systems.ANYWHERE:
            rest = [_as_user(message) for message in rest]
        if self.systems is Systems.NONE and head:
            return _joined([_as_user(head[0]), *rest[:1]], ("user",)) + rest[1:]
        return [*head, *_joined(rest, ("system",))]

    def _fitted(self, message: Message, new_ids: Mapping[str, str]) -> Message:
        made = dict(message)
        if calls := message.get("tool_calls"):
            made["tool_calls"] = [self._fitted_call(call, new_ids) for call in calls]
            if not message.get("content"):
                made["content"] = None if self.none_without_content else ""
            elif not self.thinks_and_speaks:
                made.pop("thinking", None)
        if "tool_call_id" in message:
            made["tool_call_id"] = self._fitted_id(message["tool_call_id"], new_ids)
        return made

    def _fitted_call(self, call: Message, new_ids: Mapping[str, str]) -> Message:
        function = call.get("function")
        if not isinstance(function, Mapping):
            return call
        arguments = _arguments(function.get("arguments"), self.arguments_as_text)
        made = {**call, "function": {**function, "arguments": arguments}}
        if "id" in call or self.ids is not Ids.ANY:
            made["id"] = self._fitted_id(call.get("id"), new_ids)
        return made

    def _fitted_id(self, given: Any, new_ids: Mapping[str, str]) -> Any:
        if self.ids is Ids.NINE:
            return nine_letters(str(given or ""))
        return new_ids.get(str(given or ""), given)


def forms_of(render: Render) -> ChatForms:
    """What a template shows of itself. Never raises: where it shows nothing, the usual is taken."""
    shown = _Shown(render)
    nine = not shown.calls() and shown.calls(call_id=NINE)
    call_id = NINE if nine else LONG_ID
    text = shown.wants_text(call_id)
    none = shown.wants_none(call_id, text)
    numbers = f"<|tool_call_begin|>{LONG_ID}" in (shown.calls(text=text) or "")
    beside = shown.calls(call_id, text, content="a", thinking="b")
    two = shown.calls(call_id, text, count=2)
    return ChatForms(
        arguments_as_text=text,
        none_without_content=none,
        ids=Ids.NINE if nine else Ids.NUMBERED if numbers else Ids.ANY,
        systems=shown.systems(),
        more_systems=shown.holds("system", "system", "user"),
        thinks_and_speaks=beside is not None,
        one_call=two is None and shown.calls(call_id, text) is not None,
        alternates=not shown.takes("user", "user", "assistant", "assistant", "user")
        and shown.takes("user", "assistant", "user"),
    )


class _Shown:
    def __init__(self, render: Render) -> None:
        self._render = render

    def calls(
        self, call_id: str = LONG_ID, text: bool = False, count: int = 1, **beside: Any
    ) -> str | None:
        """A chat with calls, rendered; None where that is refused."""
        arguments: Any = {KEY: VALUE}
        if text:
            arguments = json.dumps(arguments)
        ids = [call_id, call_id[::-1]][:count]
        function = {"name": NAME, "arguments": arguments}
        calls = [{"id": each, "type": "function", "function": function} for each in ids]
        results = [
            {"role": "tool", "tool_call_id": each, "name": NAME, "content": "r"} for each in ids
        ]
        assistant = {"role": "assistant", "content": "", **beside, "tool_calls": calls}
        return self.text([{"role": "user", "content": "u"}, assistant, *results])

    def wants_text(self, call_id: str) -> bool:
        as_object, as_text = self.calls(call_id), self.calls(call_id, text=True)
        if as_text is None or as_object is None:
            # Where one fails for another reason, so that both do, arguments remain objects.
            return as_object is None and as_text is not None
        return f"{{'{KEY}'" in as_object and f'{{\\"{KEY}' not in as_text

    def wants_none(self, call_id: str, text: bool) -> bool:
        empty = self.calls(call_id, text)
        none = self.calls(call_id, text, content=None)
        return none is not None and none != empty and "None" not in none

    def systems(self) -> Systems:
        if not self.holds("system", "user"):
            return Systems.NONE if self.takes("user") else Systems.ANYWHERE
        later = ("user", "assistant", "system", "user")
        return Systems.ANYWHERE if self.holds(*later) else Systems.FIRST

    def holds(self, *roles: str) -> bool:
        """Whether what these system messages say is in the prompt."""
        text = self.text(_chat(roles))
        count = sum(role == "system" for role in roles)
        return text is not None and all(word in text for word in (FIRST, SECOND)[:count])

    def takes(self, *roles: str) -> bool:
        return self.text(_chat(roles)) is not None

    def text(self, messages: Sequence[Message]) -> str | None:
        try:
            return self._render(messages)
        except RequestError:
            return None


def _chat(roles: Iterable[str]) -> list[Message]:
    words = iter((FIRST, SECOND))
    return [{"role": r, "content": next(words) if r == "system" else "text"} for r in roles]


def _arguments(given: Any, as_text: bool) -> Any:
    if isinstance(given, str) and not as_text:
        try:
            return json.loads(given or "{}")
        except (ValueError, RecursionError):
            return given
    if as_text and not isinstance(given, str):
        return json.dumps({} if given is None else given, ensure_ascii=False)
    return given


def _as_user(message: Message) -> Message:
    return {**message, "role": "user"} if message["role"] == "system" else message


def _joined(messages: Iterable[Message], roles: tuple[str, ...]) -> list[Message]:
    """With neighbours of one of these roles made one, if they are texts."""
    made: list[Message] = []
    for message in messages:
        before = made[-1] if made else {}
        alike = before.get("role") == message["role"] and message["role"] in roles
        if alike and _is_text(before) and _is_text(message):
            made[-1] = _together(before, message)
        else:
            made.append(message)
    return made


def _together(before: Message, after: Message) -> Message:
    texts = [text for text in (before.get("content"), after.get("content")) if text]
    made = {**before, **after, "content": APART.join(texts)}
    if calls := [*(before.get("tool_calls") or ()), *(after.get("tool_calls") or ())]:
        made["tool_calls"] = calls
    return made


def _is_text(message: Message) -> bool:
    return isinstance(message.get("content") or "", str)


def _one_by_one(messages: Sequence[Message]) -> list[Message]:
    """A message of several calls becomes as many, each before its result."""
    made: list[Message] = []
    waiting: dict[Any, Message] = {}
    for message in messages:
        calls = message.get("tool_calls") or ()
        if len(calls) > 1:
            first = {**message, "tool_calls": calls[:1]}
            made.append(first)
            bare = {key: message[key] for key in ("role",)} | {"content": ""}
            waiting = {c.get("id"): {**bare, "tool_calls": [c]} for c in calls[1:]}
            continue
        if message["role"] == "tool" and message.get("tool_call_id") in waiting:
            made.append(waiting.pop(message["tool_call_id"]))
        elif waiting and message["role"] != "tool":
            made += waiting.values()
            waiting = {}
        made.append(message)
    return [*made, *waiting.values()]
