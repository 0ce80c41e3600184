"""Forked processes: what a process must not do itself before it has forked them all, or survive.

A process that has touched CUDA cannot fork another one that uses it. Forked, and not spawned,
because a child then has imported everything already.
"""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from convnorm.experiment.errors import InputError


class Ended(Exception):
    """A child ended without an answer; `code` is its exit code, minus the number of a signal."""

    def __init__(self, code: int | None):
        super().__init__(f"a child process ended without an answer, exit code {code}")
        self.code = code


class Raised(Exception):
    """A child raised an exception; the message is its traceback."""


def in_child(function: Callable[..., Any], *args: Any, seconds: float) -> Any:
    """Return function(*args), called in a forked process whose output is dropped.

    Raises the InputError of the function, Raised for any other exception of it, Ended for a child
    that was killed or crashed, and TimeoutError for one that took more than `seconds`, which is
    killed.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, args))
    process.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            process.kill()
            raise TimeoutError(f"a child process did not end within {seconds:.0f} s")
        answer = receiver.recv()
    except EOFError:
        process.join()
        raise Ended(process.exitcode) from None
    finally:
        receiver.close()
        process.join()
    if isinstance(answer, Exception):
        raise answer
    return answer


def _answer(sender: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Send what the function returns or raises; of most exceptions the text, which travels."""
    with open(os.devnull, "w") as nowhere:
        for descriptor in (1, 2):
            os.dup2(nowhere.fileno(), descriptor)
    try:
        answer = function(*args)
    except InputError as error:
        answer = error
    except Exception:
        answer = Raised(traceback.format_exc())
    sender.send(answer)
