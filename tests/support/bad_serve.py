"""`megainfer serve` whose stand-ins connect to their agents by other addresses:

    BAD_ROUTES=right=127.0.0.1:4000 python -m tests.support.bad_serve serve path/to/model ...

so that what a test has put between them is between them. Nodes may be started again as often as
connections break.
"""

import os

from megainfer.hosts.listening import Address
from megainfer.hosts.reception import Reception
from megainfer.supervise.restarts import Restarts
from tests.support.chaos.serve import bound_restarts

ROUTES = "BAD_ROUTES"


def main() -> None:
    routes = dict(route.split("=") for route in os.environ[ROUTES].split(","))
    own = Reception.listens_at

    def listens_at(reception: Reception, name: str) -> Address:
        if name not in routes:
            return own(reception, name)
        host, _, port = routes[name].partition(":")
        return Address(host, int(port))

    Reception.listens_at = listens_at  # type: ignore[method-assign]  # in its place
    bound_restarts(Restarts(most=1000, window=1.0))
    from megainfer.cli import main as megainfer

    megainfer()


if __name__ == "__main__":
    main()
