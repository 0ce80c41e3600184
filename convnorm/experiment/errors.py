"""A script that cannot go on ends with one clear line and no traceback."""

import errno
import sys
from collections.abc import Callable

# A disk that is full, over quota, read-only or failing, and a file that is larger than allowed.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
SHOWN = 80  # characters of a value in a message


class InputError(ValueError):
    """What the user gave is wrong.

    The message is one line that names the key or file, the value, and what was expected.
    """


class Stopped(Exception):
    """A run ended before it was done; the message says why and how it goes on.

    code: the exit status of the script.
    """

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def shortened(text: str) -> str:
    """Return a text, or its beginning and its length."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text)} characters)"


def exit_code(main: Callable[[], int | None]) -> int:
    """Run a script's `main` and return its exit status: its own, 2 for wrong input, or `code`."""
    try:
        return main() or 0
    except (InputError, Stopped) as error:
        kind = "error: " if isinstance(error, InputError) else ""
        print(kind + " ".join(str(error).split()), file=sys.stderr)
        return getattr(error, "code", 2)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        print(f"error: {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what was saved before is intact", file=sys.stderr)
        return 130
