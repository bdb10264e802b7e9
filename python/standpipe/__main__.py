"""The ``standpipe`` command: the wheel has the whole of it."""

from __future__ import annotations

import os
import signal
import sys

from ._standpipe import run_command


def main() -> None:
    """Runs the command that the process's arguments name, and ends the process with its exit code."""
    # Commands that clean up listen for Ctrl-C themselves; the others end at once, as programs do. Python's own handler
    # would only run after the command has ended.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    name = "standpipe" if os.path.basename(sys.argv[0]) == "__main__.py" else sys.argv[0]
    code = run_command([name, *sys.argv[1:]])
    # Nothing of Python's is left to end, and `mount --daemon` comes here in a forked child.
    os._exit(code)


if __name__ == "__main__":
    main()
