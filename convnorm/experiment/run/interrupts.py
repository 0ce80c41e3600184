"""SIGINT and SIGTERM as a request to stop between two steps."""

import os
import signal
import threading
import time
from types import FrameType

POLL = 0.5  # seconds between two looks for the parent


def end_with_parent() -> None:
    """Let this process ask itself to stop, by SIGTERM, when the one that started it is gone.

    torchrun ends its processes when it ends, but cannot when it is killed.
    """
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL)
    os.kill(os.getpid(), signal.SIGTERM)


class Interrupts:
    """A context that notes the first signal in `signal`; a second Ctrl-C stops at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.signal: int | None = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def __enter__(self) -> "Interrupts":
        self._previous = [signal.signal(number, self._note) for number in self.SIGNALS]
        return self

    def __exit__(self, *_) -> None:
        for number, handler in zip(self.SIGNALS, self._previous, strict=True):
            signal.signal(number, handler)
