"""The reasons for which a test may be skipped; any other fails the run."""

import re
from collections.abc import Mapping

BY_NATURE: Mapping[str, str] = {
    r"a dense model's only expert can't be the wrong one": "there is nothing to test",
    r"no GPU": "most machines have none; the fake device and the interpreter prove the rest",
    r"only root can make network namespaces": "a suite runs as anybody, anywhere",
    r"only root can become another user": "a suite runs as anybody, and the others prove the rest",
}
"""Reason, as a pattern -> why that is as it should be, wherever the suite runs."""

OF_THE_MACHINE: Mapping[str, str] = {
    r"kernels (were not|are not) built|M2N is not built": "there is no C++ compiler",
    r"there is no `ip` ": "iproute2 makes the hosts of tests",
    r"no browser: ": "neither pip nor the suite brings one",
    r"no aarch64-linux-gnu-g\+\+ ": "a cross compiler, for which `make test-all` alone asks",
    r"node and npm aren't installed": "`make test-all` alone asks for them",
    r"Ray isn't installed: ": "285 MB, of which `make test-all` alone has a use",
    r".* can't be installed here: ": "heavy clients of `make test-all`; docs/clients.md names them",
}
"""What a machine may lack, but for one that runs with --whole-machine, as continuous integration
does."""


def may_skip(reason: str, whole_machine: bool) -> bool:
    allowed = BY_NATURE if whole_machine else {**BY_NATURE, **OF_THE_MACHINE}
    return any(re.search(pattern, reason) for pattern in allowed)
