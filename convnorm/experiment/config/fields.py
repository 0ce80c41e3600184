"""The fields of a config: their names and types, the ranges of their numbers, and messages on them.

Every number has its range where its field is declared, with `bounded`; `check_ranges` in the
dataclass's `__post_init__` holds each value against it.
"""

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin

import yaml

from convnorm.experiment.errors import InputError, shortened

LARGEST_SEED = 2**63 - 1
SYNONYMS = {"config": "cfg", "output_dir": "run_dir"}  # names that other suites have


@dataclass(frozen=True)
class Range:
    """All finite numbers from `low` to `high`; an open end is not one of them."""

    low: float
    high: float
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = self.low < value if self.open_low else self.low <= value
        below = value < self.high if self.open_high else value <= self.high
        return above and below and math.isfinite(value)

    def __str__(self) -> str:
        if not self.open_low and not self.open_high:
            return f"{self.low} to {self.high}"
        low = f"more than {self.low}" if self.open_low else f"{self.low} or more"
        return f"{low} and {'less than' if self.open_high else 'at most'} {self.high}"


def bounded(
    default: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> Any:
    """Declare a field of a dataclass whose number, or each of whose numbers, lies in a range.

    One of `least` and `above` (which is not in the range itself) and one of `most` and `below`.
    A default of dataclasses.MISSING is none.
    """
    low, high = (above if least is None else least), (below if most is None else most)
    if low is None or high is None:
        raise TypeError("bounded: expected least or above, and most or below")
    allowed = Range(low, high, open_low=least is None, open_high=most is None)
    return field(default=default, metadata={"range": allowed})


def check_ranges(config: object, prefix: str = "") -> None:
    """Raise an InputError for a number of a dataclass that is not one, or out of its range.

    prefix: the dotted name of the dataclass, for messages. True and False are no numbers, and a
    fraction is no whole number.
    """
    for part in fields(config):
        allowed = part.metadata.get("range")
        if allowed is None:
            continue
        value = getattr(config, part.name)
        kinds = set(_plain_types(part.type))
        fits = (int, float) if float in kinds else (int,)
        if value is None and type(None) in kinds:
            continue
        good = all(
            type(number) in fits and number in allowed
            for number in (value if isinstance(value, tuple | list) else (value,))
        )
        expected = f"{allowed}, or null" if type(None) in kinds else str(allowed)
        given = list(value) if isinstance(value, tuple) else value  # as YAML has it
        require(good, f"{prefix}.{part.name}" if prefix else part.name, given, expected)


def _plain_types(kind: Any) -> Iterator[Any]:
    for inner in get_args(kind) or (kind,):
        if inner is kind:
            yield kind
        else:
            yield from _plain_types(inner)


def shown(value: object) -> str:
    """Return a value for a message, shortened where it is long."""
    try:
        return shortened(repr(value))
    except ValueError:  # Python prints no more than 4300 digits
        return "a number of thousands of digits"


def require(condition: bool, key: str, value: object, expected: str) -> None:
    """Raise an InputError that names the key, its value and what was expected."""
    if not condition:
        raise InputError(f"{key}: {shown(value)} is not allowed; expected {expected}")


@cache
def types_of(config: type, prefix: str = "") -> dict[str, Any]:
    """Return dotted name -> type of every field of a dataclass and of the dataclasses in it."""
    types = {}
    for part in fields(config):
        types[prefix + part.name] = part.type
        if is_dataclass(part.type):
            types |= types_of(part.type, f"{prefix}{part.name}.")
    return types


def expected(kind: Any) -> str:
    """Return a field's type in words."""
    if is_dataclass(kind):
        return "keys and values"
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if get_origin(kind) is dict:
        return "keys and values"
    if get_origin(kind) is tuple:
        first, *others = get_args(kind)
        number = "" if Ellipsis in others else f"{1 + len(others)} "
        return f"a list of {number}{expected(first)}"
    if get_args(kind):
        return " or ".join(map(expected, get_args(kind)))
    return "null" if kind is type(None) else getattr(kind, "__name__", str(kind))


def not_allowed(key: str, value: object, types: Mapping[str, Any]) -> str:
    """Return the message for a value of another type than the key's."""
    return f"{key}: {shortened(str(value))} is not allowed; expected {expected(types[key])}"


def unknown(key: str, known: Iterable[str]) -> str:
    """Return the message for an unknown key, with the keys that were probably meant.

    These are all keys of the same last name, else all whose last name ends on it, else the one
    that is close, else all keys beside it.
    """
    known = list(dict.fromkeys(known))
    group, _, last = key.rpartition(".")
    same = [name for name in known if name.rpartition(".")[2] == SYNONYMS.get(last, last)]
    same = same or [name for name in known if name.endswith(f"_{last}")]
    beside = [name for name in known if name.rpartition(".")[0] == group]
    meant = same or difflib.get_close_matches(key, known, n=1) or beside
    known_ones = ", ".join(meant) or "one of those that --help lists"
    return f"{shortened(key) or repr(key)}: no such key; expected {known_ones}"


def choosing(default: Any, reads: Mapping[str, tuple[str, ...]]) -> Any:
    """Declare a field of a dataclass whose value decides which of the others count.

    reads: value -> the fields that it reads; fields that no value names always count.
    """
    return field(default=default, metadata={"reads": reads})


def since(default: Any, before: Callable[[Mapping[str, Any]], Any]) -> Any:
    """Declare a field of a group that is newer than saved configs and changes what some would mean.

    before: the saved values of a group without the field -> the value that the field would have
    had. Fields that have no such function would have had their default.
    """
    return field(default=default, metadata={"before": before})


def meant_before(group: type, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a group whose defaults are not what its saved values meant, see `since`.

    group: the group's dataclass.
    """
    known = {part.name: part.metadata.get("before") for part in fields(group)}
    return {name: before(saved) for name, before in known.items() if before is not None}


@cache
def places_of(config: type, prefix: str = "") -> frozenset[str]:
    """Return the dotted names of the fields that say where something lies, and not what it is.

    Each dataclass in `config` may name such fields of its own in `PLACE`.
    """
    own = {prefix + name for name in getattr(config, "PLACE", ())}
    groups = [part for part in fields(config) if is_dataclass(part.type)]
    return frozenset(own).union(*(places_of(it.type, f"{prefix}{it.name}.") for it in groups))


def unread(config: object, defaults: object, prefix: str = "") -> list[str]:
    """Return a line for each choice under which fields have values that nothing reads.

    defaults: the same config with the values that nobody has set, which are passed over.
    """
    lines = []
    choices = [part for part in fields(config) if "reads" in part.metadata]
    settled = {  # what something reads, or was said of
        name for part in choices for name in part.metadata["reads"][getattr(config, part.name)]
    }
    for part in fields(config):
        value, usual = getattr(config, part.name), getattr(defaults, part.name)
        if is_dataclass(value):
            lines += unread(value, usual, f"{prefix}{part.name}.")
        if reads := part.metadata.get("reads"):
            read = reads[value]
            names = dict.fromkeys(name for others in reads.values() for name in others)
            idle = [
                f"{prefix}{name}"
                for name in names
                if name not in settled and getattr(config, name) != getattr(defaults, name)
            ]
            settled.update(names)
            if idle:
                why = f"{prefix}{part.name} {value} reads {', '.join(read) or 'no such option'}"
                lines.append(f"{', '.join(idle)}: without effect, as {why}")
    return lines


def to_yaml(config: object) -> str:
    """Return the resolved config as YAML, with the keys in the order of the dataclass."""
    return yaml.safe_dump(asdict(config), sort_keys=False)


def differing(
    there: dict[str, Any], here: dict[str, Any], prefix: str = ""
) -> dict[str, tuple[Any, Any]]:
    """Return dotted key -> the values there and here, where they differ; None for no such key."""
    found = {}
    for key in {**there, **here}:
        old, new = there.get(key), here.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found |= differing(old, new, f"{prefix}{key}.")
        elif old != new:
            found[f"{prefix}{key}"] = (old, new)
    return found


def differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Return the dotted keys whose values differ, each as 'key: VALUE there, VALUE here'."""
    pairs = differing(there, here).items()
    return [f"{key}: {old!r} there, {new!r} here" for key, (old, new) in pairs]
