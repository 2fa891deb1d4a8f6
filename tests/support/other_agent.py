"""`megainfer agent` of another release than the supervisor's:

    python -m tests.support.other_agent release|language agent ...

whose release has another number, or which speaks another language between hosts.
"""

import sys

from megainfer.agent import agent
from megainfer.cli import main
from megainfer.hosts import session

if __name__ == "__main__":
    match sys.argv.pop(1):
        case "release":
            agent.__version__ = "0.0.9"  # type: ignore[attr-defined]  # in its place
        case "language":
            session.VERSION = 2
    main()
