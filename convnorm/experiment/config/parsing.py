"""Configuration: a frozen dataclass filled from a YAML file and the command line."""

import argparse
import copy
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import jsonargparse

from convnorm.experiment.config.command_line import check_words, one_line
from convnorm.experiment.config.fields import (
    bounded,
    check_ranges,
    not_allowed,
    types_of,
    unknown,
    unread,
)
from convnorm.experiment.config.files import (
    check_file,
    find_config,
    list_of_configs,
)
from convnorm.experiment.config.help_text import explain, names_of_options
from convnorm.experiment.errors import InputError
from convnorm.experiment.paths import user_path

Config = TypeVar("Config")


@dataclass(frozen=True)
class RunOptions:
    """How a run is carried out; none of this changes what the run is.

    Args:
        run_dir: the run's folder (default: runs/<pipeline>/<config>/seed<seed>).
        device: auto takes a CUDA device where there is one; its random numbers differ from the
            CPU's.
        checkpoint_every: steps between checkpoints.
        overwrite: delete the run that is in the folder instead of resuming it.
        data_root: where the data are, in place of data.root, if they were moved.
        allow_other_hardware: resume with another number of processes, or on another type of
            device, than the run was trained with so far; it ends elsewhere for it.
    """

    run_dir: str = ""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint_every: int = bounded(1000, least=1, most=10**9)
    overwrite: bool = False
    data_root: str = ""
    allow_other_hardware: bool = False

    def __post_init__(self):
        check_ranges(self)
        user_path(self.run_dir, "run_dir")


# What jsonargparse lets through where a value is not of its type.
_FAULTS = (jsonargparse.ArgumentError, TypeError, ValueError, OverflowError)


def _parser(config: type, **options: Any) -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(exit_on_error=False, allow_abbrev=False, **options)
    parser.add_class_arguments(config)
    return parser


@cache
def _plain_parser(config: type) -> jsonargparse.ArgumentParser:
    return _parser(config)


def build(config: type[Config], values: Mapping[str, Any]) -> Config:
    """Make a config, with the dataclasses in it, of nested dicts of values of the right types.

    Raises InputError for a value out of its range, or that contradicts another.
    """
    built = {
        part.name: build(part.type, values[part.name])
        if is_dataclass(part.type)
        else values[part.name]
        for part in fields(config)
    }
    try:
        return config(**built)
    except ValueError as error:  # dataclasses of the method know no InputError
        raise error if isinstance(error, InputError) else InputError(str(error)) from None


def _parse_file(parser: jsonargparse.ArgumentParser, path: Path, types: dict[str, Any]) -> Any:
    try:
        return parser.parse_path(path)
    except _FAULTS as error:
        raise InputError(f"{path}: {one_line(error, types)}") from None


def values_of(config: type, path: Path) -> dict[str, Any]:
    """Return what a YAML file alone makes of a config's fields, as `build` takes them."""
    types = types_of(config)
    check_file(path, types)
    return _parse_file(_plain_parser(config), path, types).as_dict()


def read(config: type[Config], path: Path) -> Config:
    """Read a config from a YAML file alone; InputError if anything is wrong with it."""
    try:
        return build(config, values_of(config, path))
    except InputError as error:
        raise InputError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def set_value(config: type, values: dict[str, Any], key: str, text: str) -> None:
    """Change one field in what `values_of` returned, as `--key=text` does on the command line.

    Raises InputError for a key that is no field, or a group of them, and for a text that is no
    value of the field.
    """
    types = types_of(config)
    group, _, name = key.rpartition(".")
    inside = group in types and get_origin(types[group]) is dict
    if not inside and (key not in types or is_dataclass(types[key])):
        known = [name for name, kind in types.items() if not is_dataclass(kind)]
        raise InputError(unknown(key, [*known, *names_of_options(config)]))
    typed = _typed(key, Any if inside else types[key], text)
    for part in group.split(".") if group else ():
        values = values[part]
    values[name] = copy.deepcopy(typed)


# Numbers that every reader reads alike. A grid can have thousands: this is 100 times as fast.
_NUMBERS = {
    int: re.compile(r"-?\d{1,15}"),
    float: re.compile(r"-?\d{1,15}(\.\d{1,20})?(e-?\d{1,2})?"),
}


@cache
def _typed(key: str, kind: Any, text: str) -> Any:
    if kind in _NUMBERS and _NUMBERS[kind].fullmatch(text):
        return kind(text)
    types = {key: kind}
    check_words([f"--{key}={text}"], types)
    try:
        return _value_parser(key, kind).parse_args([f"--{key}={text}"])[key]
    except _FAULTS as error:
        raise InputError(one_line(error, types)) from None


@cache
def _value_parser(key: str, kind: Any) -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument(f"--{key}", type=kind)
    return parser


def _training_parser(config: type, pipeline: str, default: str | None) -> Any:
    parser = _parser(
        config,
        description=f"Fields come from configs/{pipeline}/NAME.yaml and from the options below.",
        epilog="The same command again resumes the run.",
    )
    usual = f"{default} by default" if default else "without it, the configs are listed"
    parser.add_argument("--cfg", action="config", help=f"a path or a name ({usual})")
    flags = {
        "overwrite": "delete the run that is in the folder instead of resuming it",
        "allow_other_hardware": "resume with other processes or on another type of device",
    }
    parser.add_class_arguments(RunOptions, skip=set(flags))
    for name, words in flags.items():
        # A flag may stand alone; jsonargparse wants a value after every bool.
        parser.add_argument(
            f"--{name}", type=bool, nargs="?", const=True, default=False, help=words
        )
    for part in (config, RunOptions):
        explain(parser, part)
    return parser


def _parse_words(
    parser: jsonargparse.ArgumentParser, words: Sequence[str], config: type
) -> jsonargparse.Namespace:
    types = types_of(config) | types_of(RunOptions)
    check_words(words, types)
    try:
        return parser.parse_args(words)
    except _FAULTS as error:
        names = [*names_of_options(config), "cfg", "print_config", "help"]
        raise InputError(one_line(error, types, names)) from None


def parse(
    config: type[Config], pipeline: str, default: str | None, argv: Sequence[str] | None = None
) -> tuple[Config, RunOptions]:
    """Read the command line of a training script: --cfg NAME and any field by its dotted name.

    pipeline: the folder under configs/ where names are looked up.
    default: the config that is read without --cfg; None prints the help and the configs instead.
    Raises InputError for whatever is wrong; --help and --print_config exit. Fields that have been
    set and that nothing reads are said on stderr.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--cfg", default=default)
    try:
        known, rest = first.parse_known_args(argv)
    except argparse.ArgumentError:
        raise InputError("--cfg: got nothing; expected a path or a name") from None
    parser = _training_parser(config, pipeline, default)
    if known.cfg is None:
        _parse_words(parser, rest, config)  # exits with help, or raises for a wrong word
        parser.print_help()
        print(f"\n{list_of_configs(pipeline)}", flush=True)
        raise InputError("--cfg: nothing given; expected a path or one of the names above")
    path = find_config(known.cfg, pipeline)
    types = types_of(config) | types_of(RunOptions)
    check_file(path, types)
    _parse_file(parser, path, types)
    values = _parse_words(parser, ["--cfg", str(path), *rest], config)
    built, options = (build(part, values.as_dict()) for part in (config, RunOptions))
    usual = Path("runs") / pipeline / path.stem / f"seed{built.seed}"
    run_dir = user_path(options.run_dir, "run_dir") if options.run_dir else usual
    options = replace(options, run_dir=str(run_dir))
    for line in unread(built, config()):
        print(f"warning: {line}", file=sys.stderr)
    return built, options


def from_dict(config: type[Config], values: dict[str, Any]) -> Config:
    """Rebuild a config from what `dataclasses.asdict` made of one.

    Raises InputError for a key that does not exist and for one that is missing: its default may
    have changed since the config was written.
    """
    types = types_of(config)
    if odd := sorted(_leaves(values, types) ^ {k for k in types if not is_dataclass(types[k])}):
        raise InputError(f"config of another version of the suite: {', '.join(odd)}")
    try:
        typed = _plain_parser(config).parse_object(values)
    except _FAULTS as error:
        raise InputError(one_line(error, types)) from None
    return build(config, typed.as_dict())


def _leaves(values: Any, types: dict[str, Any], prefix: str = "") -> set[str]:
    """Return the dotted names of all fields in nested dicts; a field may be a dict itself."""
    if not isinstance(values, dict) or (prefix and not is_dataclass(types.get(prefix))):
        return {prefix}
    return {
        name
        for key, value in values.items()
        for name in _leaves(value, types, f"{prefix}.{key}" if prefix else str(key))
    }


def options_of(options: type[Config], values: Mapping[str, Any], prefix: str) -> Config:
    """Fill a dataclass of options that another field chose, from the dict that a config holds.

    prefix: the dotted name of the dict, for messages. What is left out has its default. Raises
    InputError for a key that does not exist and for a value of another type or out of range.
    """
    types = {f"{prefix}.{name}": kind for name, kind in types_of(options).items()}
    for name, value in values.items():
        key = f"{prefix}.{name}"
        if key not in types:
            raise InputError(unknown(key, types))
        if value is None and type(None) not in get_args(types[key]):
            raise InputError(not_allowed(key, "null", types))
    if all(type(value) is types[f"{prefix}.{name}"] for name, value in values.items()):
        return options(**values)  # there is nothing to parse
    given = {f"{prefix}.{name}": value for name, value in values.items()}
    try:
        parsed = _options_parser(options, prefix).parse_object(given)
    except _FAULTS as error:
        raise InputError(one_line(error, types)) from None
    return options(**{part.name: parsed[f"{prefix}.{part.name}"] for part in fields(options)})


@cache
def _options_parser(options: type, prefix: str) -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    for part in fields(options):
        parser.add_argument(f"--{prefix}.{part.name}", type=part.type, default=part.default)
    return parser
