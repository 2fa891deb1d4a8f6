"""A hub with one repository, over HTTP, that counts what is fetched of it."""

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "somebody/model"


class FakeHub:
    """`fetched` counts each file's GETs. folder: what the repository has."""

    def __init__(self, folder: Path) -> None:
        self.files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        self.fetched: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(with_body=True)

            def do_HEAD(self) -> None:
                self._answer(with_body=False)

            def _answer(self, with_body: bool) -> None:
                path = self.path.partition("?")[0]
                if path.startswith(f"/api/models/{REPOSITORY}"):
                    self._send(hub.listing("/tree/" in path), {"content-type": "application/json"})
                    return
                name = path.rpartition("/")[2]
                if "/resolve/" not in path or name not in hub.files:
                    self.send_error(404)
                    return
                body = hub.files[name]
                if with_body:
                    hub.count(name)
                tag = hashlib.sha256(body).hexdigest()
                self._send(body, {"etag": f'"{tag}"', "x-repo-commit": COMMIT}, with_body)

            def _send(self, body: bytes, headers: dict[str, str], with_body: bool = True) -> None:
                self.send_response(200)
                for name, value in {**headers, "content-length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if with_body:
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Nothing to standard error."""

        return Handler

    def count(self, name: str) -> None:
        with self._counting:
            self.fetched[name] += 1

    def listing(self, tree: bool) -> bytes:
        """Of the repository's files, or of all that is known of it."""
        entries = [
            {"type": "file", "path": name, "size": len(body), "oid": COMMIT}
            for name, body in self.files.items()
        ]
        siblings = [{"rfilename": name} for name in self.files]
        known = {"id": REPOSITORY, "sha": COMMIT, "siblings": siblings}
        return json.dumps(entries if tree else known).encode()


@contextmanager
def fake_hub(folder: Path) -> Iterator[FakeHub]:
    hub = FakeHub(folder)
    try:
        yield hub
    finally:
        hub.close()
