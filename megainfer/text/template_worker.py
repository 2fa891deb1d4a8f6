"""A process that renders chats: a model's template is another's program, and may never end.

    python -m megainfer.text.template_worker CPU_SECONDS

The first frame in holds the templates, name -> (source, special tokens); each later one the name of
one and what its `render` takes; both are JSON. A frame out: a text, or why there is none.
"""

import json
import sys

from megainfer.errors import RequestError
from megainfer.helper_frames import answer, frames, set_alarm, set_bounds
from megainfer.text.chat_template import ChatTemplate

MEMORY_BYTES = 2**30  # of the process
MAX_TEXT_BYTES = 128 * 2**20
TEXT, REFUSED = b"\0", b"\1"


def main() -> None:
    """Until the other side closes the pipe."""
    cpu_seconds = float(sys.argv[1])  # for one chat
    set_bounds(MEMORY_BYTES)
    asked = frames()
    templates = {name: ChatTemplate(*parts) for name, parts in json.loads(next(asked)).items()}
    for frame in asked:
        name, arguments = json.loads(frame)
        set_alarm(cpu_seconds)
        said = _render(templates[name], arguments)
        set_alarm(0)
        answer(said)


def _render(template: ChatTemplate, arguments: list[object]) -> bytes:
    try:
        # As `TemplateRenderer` wrote them, which knows the types that JSON has lost on the way.
        rendered = template.render_chat(*arguments)  # type: ignore[arg-type]
        text = rendered.encode("utf-8", "surrogatepass")
        if len(text) > MAX_TEXT_BYTES:
            raise RequestError(f"the model's chat template made {len(text)} bytes", "messages")
    except RequestError as error:
        return REFUSED + f"{error.param or ''}\0{error}".encode("utf-8", "surrogatepass")
    return TEXT + text


if __name__ == "__main__":
    main()
