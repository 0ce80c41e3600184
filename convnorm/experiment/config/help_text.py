"""What --help and messages say of a config's fields beyond their docstrings."""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import get_args


def explain(parser: argparse.ArgumentParser, config: type) -> None:
    """Add to the help what the fields' metadata know: ranges, and what each kind reads."""
    notes = dict(_notes(config))
    for action in parser._actions:
        if action.dest in notes and action.help != argparse.SUPPRESS:
            said = (action.help or "").strip().rstrip(".")
            note = notes[action.dest].replace("%", "%%")
            action.help = f"{said} [{note}]" if said else note


def _notes(config: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    for part in fields(config):
        key = prefix + part.name
        if "range" in part.metadata:
            yield key, str(part.metadata["range"])
        if "reads" in part.metadata:
            reads = part.metadata["reads"].items()
            yield key, "; ".join(f"{kind} reads {', '.join(its) or 'none'}" for kind, its in reads)
        if "options" in part.metadata:
            yield key, _options_in_words(part.metadata["options"])
        if is_dataclass(part.type):
            yield from _notes(part.type, f"{key}.")


def _options_in_words(classes: Mapping[str, type]) -> str:
    """Return the options of dataclasses with their ranges; several names can have one."""
    texts = []
    for options in dict.fromkeys(classes.values()):
        names = ", ".join(name for name, its in classes.items() if its is options)
        each = []
        for part in fields(options):
            default = "null" if part.default is None else part.default
            allowed = part.metadata.get("range") or " or ".join(map(str, get_args(part.type)))
            each.append(f"{part.name} {allowed} ({default})")
        texts.append(f"{names}: {', '.join(each)}")
    return "; ".join(texts)


def names_of_options(config: type, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of what can stand in the dicts of options."""
    for part in fields(config):
        if is_dataclass(part.type):
            yield from names_of_options(part.type, f"{prefix}{part.name}.")
        for options in dict.fromkeys(part.metadata.get("options", {}).values()):
            yield from (f"{prefix}{part.name}.{option.name}" for option in fields(options))
