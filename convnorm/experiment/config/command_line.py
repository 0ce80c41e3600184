"""The words of a command line before jsonargparse reads them, and what it says, in our form."""

import re
from collections.abc import Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from convnorm.experiment.config import yaml_text
from convnorm.experiment.config.fields import not_allowed, unknown
from convnorm.experiment.config.files import check_file
from convnorm.experiment.errors import InputError, shortened


def one_line(error: Exception, types: dict[str, Any], known: Sequence[str] = ()) -> str:
    """Return jsonargparse's message in the form of all other errors.

    known: names besides those of the types that an unknown one can stand for.
    """
    message = " ".join(str(error).split())
    if found := re.fullmatch(r"unrecognized arguments: (.+)", message):
        key = re.split("[ =]", found[1])[0]
        return unknown(key[2:], [*types, *known]) if key.startswith("--") else message
    key = re.match(r'Parser key "(.+?)": ', message)
    value = re.search(
        r"(?:Got value:|Given value:|Unable to load config) ?(.*?)(?: - .*)?$", message
    )
    if not key or not value or key[1] not in types:
        return message
    return not_allowed(key[1], value[1] or "nothing", types)


def check_words(words: Sequence[str], types: dict[str, Any]) -> None:
    """Check what jsonargparse will read as YAML: words of a command line, and groups' files."""
    key = ""
    for word in words:
        given, _, value = word.partition("=")
        key, text = (given[2:], value) if word.startswith("--") else (key, word)
        if types.get(key) is str:
            continue
        try:
            yaml_text.check(text)
        except yaml_text.Refused as error:
            raise InputError(f"{key}: {shortened(text)} is not allowed: {error.problem}") from None
        if is_dataclass(types.get(key)) and text and _is_file(text):
            check_file(Path(text), types, f"{key}.")


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # too long for a name
        return False
