"""The keys that open the server, of which nothing but digests is kept."""

import hmac
from collections.abc import Sequence
from hashlib import sha256


class KeyRing:
    """Several keys, compared in a time that tells nothing of them."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def opens(self, key: str) -> bool:
        """Whether it is one of them; every one is compared, whatever the others gave."""
        given = digest(key)
        return sum(hmac.compare_digest(given, digest) for digest in self._digests) > 0


class Keys:
    """Those of clients and those of administrators. They may be others from one request to the
    next."""

    def __init__(self, api_keys: Sequence[str] = (), admin_keys: Sequence[str] = ()) -> None:
        self.change(api_keys, admin_keys)

    def change(self, api_keys: Sequence[str], admin_keys: Sequence[str]) -> None:
        """From now on it is these."""
        self.api, self.admin = KeyRing(api_keys), KeyRing(admin_keys)

    @property
    def asked(self) -> bool:
        """Whether anybody needs one."""
        return bool(self.api or self.admin)


def digest(key: str) -> bytes:
    """Which tells nothing of the key, if that is long enough."""
    return sha256(key.encode("latin-1", "replace")).digest()
