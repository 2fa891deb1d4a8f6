"""Writing long answers: in parts, by turns of clients.

To write JSON holds the interpreter, on whichever thread, and who has to wake meanwhile waits for up
to 5 ms each time. So it is done on the event loop, a millisecond's work at a time, and between any
two parts everybody else is heard.
"""

import asyncio
from collections.abc import Iterable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from megainfer.sharing.turns import Turns
from server.http.client import current_client

MAX_WAITING = 2**20  # answers that are there: each was taken in, and none is refused any more
CHUNK_BYTES = 2**16


class Writing:
    """Of two clients whose answers are long, the one that has had fewer parts written is next."""

    def __init__(self) -> None:
        self._turns = Turns(1, MAX_WAITING, "answers to be written")

    async def write(self, parts: Iterable[bytes]) -> list[bytes]:
        """What the parts come to, in pieces of CHUNK_BYTES or more; some parts may be empty. To
        take one is a bounded amount of work."""
        client, remaining = current_client.get(), iter(parts)
        chunks, chunk = list[bytes](), bytearray()
        part: bytes | None = b""
        while part is not None:
            async with self._turns.turn(client):
                if (part := next(remaining, None)) is not None:
                    chunk += part
                await asyncio.sleep(0)  # within the turn: others are heard before the next part
            if len(chunk) >= CHUNK_BYTES or part is None:
                chunks.append(bytes(chunk))
                chunk.clear()
        return chunks


class JsonChunks(Response):
    """JSON that is sent as it lies there: neither put together nor written at once."""

    media_type = "application/json"

    def __init__(self, chunks: list[bytes]) -> None:
        super().__init__(headers={"content-length": str(sum(map(len, chunks)))})
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        for chunk in self._chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
