"""Reads YAML that a user wrote, or damaged, without being led into a hang or a crash by it."""

from pathlib import Path
from typing import Any

import yaml

from convnorm.experiment.errors import InputError

LARGEST = 2**18  # bytes of a file
DEEPEST = 20  # lists and mappings within each other
MOST_DIGITS = 400  # of a number; the largest float has 309

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Refused(yaml.MarkedYAMLError):
    """What could take forever, or all memory, to be read."""


class _Strict(yaml.SafeLoader):
    """Refuses a key that is given twice; YAML would silently take the last."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"the key {key!r} stands there twice")
        return super().construct_mapping(node, deep)


def check(text: str) -> None:
    """Raise Refused for text that could take forever, or all memory, to be read as YAML.

    That is text of another kind than a config: long, deeply nested, with numbers of hundreds of
    digits, or with aliases, a few of which can stand for millions of values. What is no YAML is
    left to its reader.
    """
    if len(text) > LARGEST:
        raise Refused(problem=f"{len(text)} characters; expected at most {LARGEST}")
    try:
        _check_events(text)
    except Refused:
        raise
    except yaml.YAMLError:
        pass


def _check_events(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        fault = None
        if isinstance(event, yaml.AliasEvent):
            fault = f"the alias *{event.anchor}; expected its value written out"
        elif depth > DEEPEST:
            fault = f"more than {DEEPEST} lists or mappings within each other"
        elif isinstance(event, yaml.ScalarEvent) and _is_long_number(event):
            fault = f"a number of {len(event.value)} characters; expected at most {MOST_DIGITS}"
        if fault:
            raise Refused(problem=fault, problem_mark=event.start_mark)


def _is_long_number(event: yaml.ScalarEvent) -> bool:
    text = event.value.lstrip("+-")
    without_quotes = event.implicit[0]
    return without_quotes and len(text) > MOST_DIGITS and text[:1].isdigit() and " " not in text


def read(path: Path) -> Any:
    """Return what a YAML file holds; InputError, of one line, if it cannot be read."""
    try:
        if path.stat().st_size > LARGEST:
            raise Refused(problem=f"{path.stat().st_size} bytes; expected at most {LARGEST}")
        text = path.read_text()
        check(text)
        return yaml.load(text, _Strict)
    except (yaml.YAMLError, ValueError, OSError) as error:
        reason = getattr(error, "problem", None) or getattr(error, "strerror", None) or error
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        raise InputError(f"{path}: {line}not readable as YAML ({reason})") from None
