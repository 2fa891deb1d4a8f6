"""Who a rank is that `torchrun` has started, and what all of them add up to, written into a folder:

torchrun --nproc-per-node 2 -m tests.support.rl_joined FOLDER
"""

import json
import sys
from pathlib import Path

from megainfer.rl.ranks.ranks import joined

if __name__ == "__main__":
    with joined("cpu") as ranks:
        (total,) = ranks.total([ranks.rank + 1])
        told = [ranks.rank, ranks.world, ranks.local, total]
        Path(sys.argv[1], f"{ranks.rank}.json").write_text(json.dumps(told))
