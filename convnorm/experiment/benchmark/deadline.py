"""Until when runs may go on, and which of them would end before."""

import math
import time
from collections.abc import Callable


class Deadline:
    """The end of some hours from now on; none ever where they are infinite.

    clock: returns seconds, as time.monotonic does.
    """

    def __init__(self, hours: float = math.inf, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._end = clock() + 3600 * hours

    @property
    def seconds_left(self) -> float:
        """The seconds that are left; less than 0 after the end."""
        return self._end - self._clock()


def may_begin(expected: float | None, seconds_left: float) -> bool:
    """Whether a run is to be begun.

    expected: seconds that it takes; where nothing tells them, it is begun as long as there is time.
    """
    return seconds_left > 0 and (expected is None or expected <= seconds_left)
