"""Runs a script and asks it to stop when the process that started it is gone, however it went.

    python child.py SCRIPT ARGUMENTS
    python child.py -m MODULE ARGUMENTS

A benchmark that is killed leaves no run behind that would train on and be in the way.
"""

import os
import runpy
import signal
import sys
import threading
import time

POLL = 0.5  # seconds


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL)
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    # A cluster's signal goes to all processes of a job: the one that started us passes on what is
    # meant for us. What is ignored stays so in torchrun's workers.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    parent = int(os.environ["CONVNORM_PARENT"])  # ours may be gone before we look for it
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    sys.argv = sys.argv[1:]
    if sys.argv[0] == "-m":
        sys.argv = sys.argv[1:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(sys.argv[0])
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
