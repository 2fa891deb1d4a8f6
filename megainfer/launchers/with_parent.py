"""`megainfer`, killed when the process that has started it ends, however that comes.

python -m megainfer.launchers.with_parent PID COMMAND ...
"""

import runpy
import sys

from megainfer.helper_frames import die_with

if __name__ == "__main__":
    die_with(int(sys.argv.pop(1)))
    runpy.run_module("megainfer", run_name="__main__", alter_sys=True)
