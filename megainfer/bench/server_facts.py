"""What a server says of itself before it is measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from megainfer.config import CPU_KERNELS
from megainfer.errors import MegaInferError

SECONDS = 30.0


class ServerFacts:
    """Asks; close it in the end. url: scheme and host, without a path."""

    def __init__(self, url: str, headers: Mapping[str, str], verify_tls: bool = True) -> None:
        self.url = url
        self.http = httpx.Client(
            base_url=url, headers=dict(headers), timeout=SECONDS, verify=verify_tls, trust_env=False
        )

    def close(self) -> None:
        self.http.close()

    def first_model(self) -> str:
        """The first model that /v1/models lists. Raises MegaInferError."""
        try:
            response = self.http.get("/v1/models")
            response.raise_for_status()
            return str(response.json()["data"][0]["id"])
        except httpx.ConnectError as error:
            raise MegaInferError(
                f"no server answers at {self.url}; say where it is with --base-url, or --host and "
                "--port"
            ) from error
        except httpx.HTTPStatusError as error:
            raise MegaInferError(
                f"{self.url}/v1/models answers {error.response.status_code}: "
                f"{error.response.text[:200]}"
            ) from error
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise MegaInferError(
                f"{self.url}/v1/models gives no model ({error!r}); name it with --model"
            ) from error

    def info(self) -> "ServerInfo":
        """Of /server_info, as MegaInfer has it; nothing where there is none, or it asks for an
        admin's key."""
        try:
            response = self.http.get("/server_info")
            found = response.json() if response.is_success else {}
        except (httpx.HTTPError, ValueError):
            return ServerInfo()  # others needn't have it
        return ServerInfo.read(found)


@dataclass(frozen=True)
class ServerInfo:
    """None: it wasn't told. gpus, processes: attention and expert nodes together, 1 if they are
    colocated; of the two the one that they are."""

    gpus: int | None = None
    processes: int | None = None
    vocab_size: int | None = None

    @classmethod
    def read(cls, document: Any) -> "ServerInfo":
        """Of the answer; what isn't MegaInfer's is passed over."""
        config, plan = _object(document, "config"), _object(document, "plan")
        nodes = [_positive(config, "attn_gpus"), _positive(config, "ffn_gpus")]
        count = None if None in nodes else sum(count or 0 for count in nodes)
        if config.get("colocated") is True:
            count = 1
        on_cpu = any(plan.get(name) in CPU_KERNELS for name in ("kernels", "expert_kernels"))
        gpus, processes = (None, count) if on_cpu else (count, None)
        return cls(gpus, processes, _positive(plan, "vocab_size"))


def _object(document: Any, name: str) -> dict[str, Any]:
    found = document.get(name) if isinstance(document, dict) else None
    return found if isinstance(found, dict) else {}


def _positive(document: Mapping[str, Any], name: str) -> int | None:
    value = document.get(name)
    return value if type(value) is int and value > 0 else None
