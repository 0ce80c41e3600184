"""Arguments of the scripts that read no config: wrong ones are told in one line, as everywhere."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from convnorm.experiment.config.fields import unknown
from convnorm.experiment.errors import InputError, shortened
from convnorm.experiment.paths import user_path


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are InputErrors that name the option that was meant."""

    def __init__(self, description: str, **options: object):
        super().__init__(
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **options,
        )

    def add_device(self, what: str) -> None:
        """Add --device. what: the start of its help."""
        self.add_argument(
            "--device",
            default="auto",
            choices=["auto", "cpu", "cuda"],
            help=f"{what} (%(default)s)",
        )

    def error(self, message: str) -> NoReturn:
        """Raise an InputError in place of the usage and an exit."""
        if found := re.match("unrecognized arguments: (--[^ =]+)", message):
            known = [word[2:] for word in self._option_string_actions if word.startswith("--")]
            raise InputError(unknown(found[1][2:], known))
        if found := re.fullmatch("the following arguments are required: (.+)", message):
            raise InputError(f"{found[1]}: missing; see --help")
        if found := re.fullmatch(
            "argument ([^:]+): invalid choice: (.+) [(]choose from (.+)[)]", message
        ):
            choices = found[3].replace("'", "")
            message = f"{found[1]}: {shortened(found[2])} is not allowed; expected one of {choices}"
        raise InputError(message.removeprefix("argument "))


def whole(least: int, most: int) -> Callable[[str], int]:
    """Return the type of an option that takes whole numbers from `least` to `most`."""

    def read(text: str) -> int:
        if not re.fullmatch("[-+]?[0-9]{1,30}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(
                f"{shortened(repr(text))} is not allowed; expected {least} to {most}"
            )
        return int(text)

    return read


def size(most: int) -> Callable[[str], int | tuple[int, int]]:
    """Return the type of an option that takes a size as configs do: `64`, or `[48,64]`."""
    side = whole(1, most)

    def read(text: str) -> int | tuple[int, int]:
        found = re.fullmatch(r"\[ *([0-9]+) *, *([0-9]+) *\]", text)
        if not found:
            return side(text)
        height, width = map(side, found.groups())
        return height if height == width else (height, width)

    return read


def path(text: str) -> Path:
    """Read a path, with `~` as the home folder."""
    try:
        return user_path(text, "")
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix(": ")) from None


def file_to_write(file: Path, option: str) -> None:
    """Raise an InputError, before the work and not after it, for a file that cannot be written."""
    if file.is_dir() or not file.parent.is_dir():
        raise InputError(
            f"{option}: {file} cannot be written; expected a file in a folder that exists"
        )
