"""The one way in which records become JSON and JSON becomes records.

A record is a frozen dataclass. Its fields may hold other records, None, booleans, numbers, text,
Literals, tuples, dicts whose keys are text, and unions of these; a field of type Any holds plain
JSON. A class with a FORMAT is written under that name, which changes whenever the fields do; what
an older record may lack has a default, and its name stays.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from convnorm.experiment import files
from convnorm.experiment.errors import InputError

Record = TypeVar("Record")


class _Unfit(Exception):
    """A value that its place cannot hold. key: dotted, from the root of the content."""

    def __init__(self, key: str, found: str):
        super().__init__(f"{key}: {found}" if key else found)


def to_json(record: Any) -> dict[str, Any]:
    """Return a record as JSON: dicts, lists, text, numbers, booleans and None.

    Raises:
        ValueError: `from_json` would refuse it or read something else: a number is not finite, or
            a value is not of the type that its field declares.
    """
    content = _written(record)
    try:
        again = _read(type(record), content, "")
    except _Unfit as error:
        raise ValueError(f"{type(record).__name__}: {error}") from None
    if again != record:
        raise ValueError(f"{type(record).__name__}: would not be read as it was written")
    return content


def from_json(cls: type[Record], content: Any, where: object) -> Record:
    """Return the record of class `cls` that `to_json` turned into `content`.

    where: what the error names, usually the file.

    Raises:
        InputError: A key is unknown, or missing and without a default, a value is of another kind,
            or the content has another format.
    """
    try:
        return _read(cls, content, "")
    except _Unfit as error:
        raise InputError(f"{where}: {error}") from None


def read(cls: type[Record], file: Path, expected: str) -> Record:
    """Return the record of class `cls` that a file of JSON holds.

    expected: what the error says should be there.

    Raises:
        InputError: The file cannot be read, is no JSON, or see `from_json`.
    """
    try:
        return from_json(cls, json.loads(files.read(file, expected).decode()), file)
    except InputError:
        raise
    except (ValueError, RecursionError, OverflowError):  # no UTF-8, no JSON, or too deep or large
        raise InputError(f"{file}: not readable as JSON; expected {expected}") from None


def read_if_there(cls: type[Record], file: Path, expected: str) -> Record | None:
    """The same; None where there is no such file. A link to nothing is one that cannot be read."""
    there = file.is_symlink() or file.exists()
    return read(cls, file, expected) if there else None


def _written(value: Any) -> Any:
    if is_dataclass(value):
        values = {field.name: _written(getattr(value, field.name)) for field in fields(value)}
        return ({"format": value.FORMAT} if hasattr(value, "FORMAT") else {}) | values
    if isinstance(value, dict):
        return {key: _written(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_written(each) for each in value]
    return value


def _read(kind: Any, value: Any, key: str) -> Any:
    """Return `value` as the type `kind` has it."""
    origin, args = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _read_record(kind, value, key)
    if kind is Any:
        return _read_plain(value, key)
    if origin in (Union, UnionType):
        return _read_union(kind, value, key)
    if origin is tuple:
        return tuple(_read_items(kind, value, key))
    if origin is dict:
        _require(isinstance(value, dict), kind, value, key)
        return {_read(args[0], k, key): _read(args[1], v, _join(key, k)) for k, v in value.items()}
    if origin is Literal:
        _require(value in args, kind, value, key)
        return value
    if kind is float and type(value) is int:
        return float(value)
    fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    _require(fits and (kind is not float or math.isfinite(value)), kind, value, key)
    return value


def _read_record(cls: type, value: Any, key: str) -> Any:
    _require(isinstance(value, dict), cls, value, key)
    kinds = {name: kind for name, kind in get_type_hints(cls).items() if name != "FORMAT"}
    if hasattr(cls, "FORMAT"):
        if (found := value.get("format")) != cls.FORMAT:
            held = f"holds {'no format' if found is None else repr(found)}"
            raise _Unfit(key, f"{held}; expected {cls.FORMAT!r}")
        value = {name: each for name, each in value.items() if name != "format"}
    optional = {field.name for field in fields(cls) if field.default is not MISSING}
    for name in (*value, *kinds):
        if name not in kinds:
            raise _Unfit(_join(key, name), f"no such key; expected {', '.join(kinds)}")
        if name not in value and name not in optional:
            raise _Unfit(_join(key, name), f"is missing; expected {_expected(kinds[name])}")
    present = {name: kind for name, kind in kinds.items() if name in value}
    return cls(**{n: _read(kind, value[n], _join(key, n)) for n, kind in present.items()})


def _read_union(kind: Any, value: Any, key: str) -> Any:
    """Where there is one alternative to null, the error names what is wrong inside of it."""
    if value is None and NoneType in get_args(kind):
        return None
    alternatives = [each for each in get_args(kind) if each is not NoneType]
    if len(alternatives) == 1 and isinstance(value, dict | list):
        return _read(alternatives[0], value, key)
    for alternative in alternatives:
        try:
            return _read(alternative, value, key)
        except _Unfit:
            continue
    raise _unfit(kind, value, key)


def _read_items(kind: Any, value: Any, key: str) -> Iterator[Any]:
    """The items of a tuple of one kind and any length, or of a kind for each place."""
    args = get_args(kind)
    _require(isinstance(value, list), kind, value, key)
    if args[-1] is Ellipsis:
        args = args[:1] * len(value)
    _require(len(value) == len(args), kind, value, key)
    for index, (each, item) in enumerate(zip(args, value, strict=True)):
        yield _read(each, item, _join(key, index))


def _read_plain(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        return {_read(str, k, key): _read_plain(v, _join(key, k)) for k, v in value.items()}
    if isinstance(value, list):
        return [_read_plain(item, _join(key, index)) for index, item in enumerate(value)]
    if isinstance(value, float):
        return _read(float, value, key)
    _require(value is None or isinstance(value, str | bool | int), Any, value, key)
    return value


def _require(condition: bool, kind: Any, value: Any, key: str) -> None:
    if not condition:
        raise _unfit(kind, value, key)


def _unfit(kind: Any, value: Any, key: str) -> _Unfit:
    return _Unfit(key, f"{_shown(value)}; expected {_expected(kind)}")


def _join(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)


def _shown(value: Any) -> str:
    """A value, or of what kind it is where it is long."""
    if isinstance(value, dict):
        return "keys and values"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    shown = "null" if value is None else repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _expected(kind: Any) -> str:
    """A type in words."""
    origin, args = get_origin(kind), get_args(kind)
    if is_dataclass(kind) or origin is dict:
        return "keys and values"
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin is tuple:
        many = args[-1] is Ellipsis
        return f"a list of {_expected(args[0])}" if many else f"a list of {len(args)}"
    if origin in (Union, UnionType):
        return " or ".join(map(_expected, args))
    names = {NoneType: "null", Any: "a value of JSON", float: "a finite number"}
    return names.get(kind, kind.__name__)
