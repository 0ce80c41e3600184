"""Configuration: a frozen dataclass filled from a YAML file and the command line."""

import argparse
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import jsonargparse
import yaml

from convnorm.experiment.errors import InputError

Config = TypeVar("Config")

ROOT = Path(__file__).resolve().parents[2]  # of the clone
CONFIGS = ROOT / "configs"


@dataclass(frozen=True)
class RunOptions:
    """How a run is carried out; none of this changes what the run is.

    run_dir: the run's folder (default: runs/<pipeline>/<config>/seed<seed>).
    device: auto takes a CUDA device where there is one. Its random numbers differ from the CPU's.
    checkpoint_every: steps between checkpoints.
    overwrite: delete the run that is in the folder instead of resuming it.
    data_root: where the data are, in place of data.root, if they were moved.
    allow_other_hardware: resume with another number of processes, or on another type of device,
        than the run was trained with so far; it ends elsewhere for it.
    """

    run_dir: str = ""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint_every: int = 1000
    overwrite: bool = False
    data_root: str = ""
    allow_other_hardware: bool = False

    def __post_init__(self):
        require(self.checkpoint_every >= 1, "checkpoint_every", self.checkpoint_every, "1 or more")


def require(condition: bool, key: str, value: object, expected: str) -> None:
    """Raise an InputError that names the key, its value and what was expected."""
    if not condition:
        raise InputError(f"{key}: {value!r} is not allowed; expected {expected}")


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that is given twice; YAML would silently take the last."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"the key {key!r} stands there twice")
        return super().construct_mapping(node, deep)


def find_config(name: str, folder_name: str) -> Path:
    """Return the file of a config: `name` is a path, or a name in configs/<folder_name>/."""
    folder = CONFIGS / folder_name
    for candidate in (Path(name), folder / name, folder / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
    raise InputError(f"--cfg {name}: no such file; configs/{folder_name} has {known}")


def _types(config: type, prefix: str = "") -> dict[str, Any]:
    """Return dotted name -> type of every field of a dataclass and of the dataclasses in it."""
    types = {}
    for field in fields(config):
        types[prefix + field.name] = field.type
        if is_dataclass(field.type):
            types |= _types(field.type, f"{prefix}{field.name}.")
    return types


def _expected(kind: Any) -> str:
    """Return a field's type in words."""
    if is_dataclass(kind):
        return "keys and values"
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if get_origin(kind) is dict:
        return "keys and values"
    if get_origin(kind) is tuple and get_args(kind)[-1] is Ellipsis:
        return f"a list of {_expected(get_args(kind)[0])}"
    if get_args(kind):
        return " or ".join(map(_expected, get_args(kind)))
    return "null" if kind is type(None) else kind.__name__


def _not_allowed(key: str, value: object, types: dict[str, Any]) -> str:
    return f"{key}: {value} is not allowed; expected {_expected(types[key])}"


def _unknown(key: str, types: dict[str, Any]) -> str:
    """Return the message for an unknown key, with the key that was probably meant.

    Where none is close, all keys beside it are named.
    """
    group = key.rpartition(".")[0]
    beside = [name for name in types if name.rpartition(".")[0] == group]
    known = difflib.get_close_matches(key, types, n=1) or beside
    return f"{key}: no such key; expected {', '.join(known) or 'one of those that --help lists'}"


def _check_yaml(path: Path, types: dict[str, Any]) -> None:
    try:
        content = yaml.load(path.read_text(), _UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        reason = getattr(error, "problem", None) or error
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        raise InputError(f"{path}: {line}not readable as YAML ({reason})") from None
    if not isinstance(content, dict):
        found = "nothing" if content is None else f"a {type(content).__name__}"
        raise InputError(f"{path}: holds {found}; expected keys and values")
    _check_keys(path, content, types, "")


def _check_keys(path: Path, content: dict[Any, Any], types: dict[str, Any], prefix: str) -> None:
    """Check names, groups and nulls; jsonargparse checks the values, but lets a null pass."""
    for name, value in content.items():
        key = f"{prefix}{name}"
        if "." in str(name):
            raise InputError(f"{path}: {key}: dots are for the command line; expected nested keys")
        if key not in types:
            raise InputError(f"{path}: {_unknown(key, types)}")
        is_group = is_dataclass(types[key])
        if is_group and isinstance(value, dict):
            _check_keys(path, value, types, f"{key}.")
        elif is_group or (value is None and type(None) not in get_args(types[key])):
            shown = "null" if value is None else value
            raise InputError(f"{path}: {_not_allowed(key, shown, types)}")


def _one_line(error: Exception, types: dict[str, Any]) -> str:
    """Return jsonargparse's message in the form of all other errors."""
    message = " ".join(str(error).split())
    if found := re.fullmatch(r"unrecognized arguments: (.+)", message):
        key = re.split("[ =]", found[1])[0]
        return _unknown(key[2:], types) if key.startswith("--") else message
    key = re.match(r'Parser key "(.+?)": ', message)
    value = re.search(
        r"(?:Got value:|Given value:|Unable to load config) ?(.*?)(?: - .*)?$", message
    )
    if not key or not value or key[1] not in types:
        return message
    return _not_allowed(key[1], value[1] or "nothing", types)


def _parser(config: type, **options: Any) -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(exit_on_error=False, allow_abbrev=False, **options)
    parser.add_class_arguments(config)
    return parser


def _instantiate(parser: jsonargparse.ArgumentParser, config: type, values: Any) -> Any:
    names = config.__dataclass_fields__
    try:
        built = parser.instantiate(values)
        return config(**{name: built[name] for name in names})
    except ValueError as error:  # dataclasses of the method know no InputError
        raise InputError(str(error)) from None


def _read(parser: jsonargparse.ArgumentParser, path: Path, types: dict[str, Any]) -> Any:
    try:
        return parser.parse_path(path)
    except (jsonargparse.ArgumentError, TypeError) as error:
        raise InputError(f"{path}: {_one_line(error, types)}") from None


def read(config: type[Config], path: Path) -> Config:
    """Read a config from a YAML file alone; InputError if anything is wrong with it."""
    types = _types(config)
    _check_yaml(path, types)
    parser = _parser(config)
    try:
        return _instantiate(parser, config, _read(parser, path, types))
    except InputError as error:
        raise InputError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def parse(
    config: type[Config], pipeline: str, default: str, argv: Sequence[str] | None = None
) -> tuple[Config, RunOptions]:
    """Read the command line of a training script: --cfg NAME and any field by its dotted name.

    pipeline: the folder under configs/ where names are looked up.
    default: the config that is read without --cfg.
    Raises InputError for whatever is wrong; --help and --print_config exit.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--cfg", default=default)
    try:
        known, rest = first.parse_known_args(argv)
    except argparse.ArgumentError:
        raise InputError("--cfg: got nothing; expected a path or a name") from None
    path = find_config(known.cfg, pipeline)
    types = _types(config) | _types(RunOptions)
    _check_yaml(path, types)
    parser = _parser(
        config,
        description=f"Fields come from configs/{pipeline}/NAME.yaml and from the options below.",
        epilog="The same command again resumes the run.",
    )
    parser.add_argument("--cfg", action="config", help=f"a path or a name ({default})")
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
    _read(parser, path, types)
    try:
        values = parser.parse_args(["--cfg", str(path), *rest])
    except (jsonargparse.ArgumentError, TypeError) as error:
        raise InputError(_one_line(error, types)) from None
    built = _instantiate(parser, config, values)
    options = _instantiate(parser, RunOptions, values)
    if not options.run_dir:
        run_dir = Path("runs") / pipeline / path.stem / f"seed{built.seed}"
        options = replace(options, run_dir=str(run_dir))
    return built, options


def from_dict(config: type[Config], values: dict[str, Any]) -> Config:
    """Rebuild a config from what `dataclasses.asdict` made of one.

    Raises InputError for a key that does not exist and for one that is missing: its default may
    have changed since the config was written.
    """
    types = _types(config)
    if odd := sorted(_leaves(values, types) ^ {k for k in types if not is_dataclass(types[k])}):
        raise InputError(f"config of another version of the suite: {', '.join(odd)}")
    parser = _parser(config)
    try:
        return _instantiate(parser, config, parser.parse_object(values))
    except (jsonargparse.ArgumentError, TypeError) as error:
        raise InputError(_one_line(error, types)) from None


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
    types = {f"{prefix}.{name}": kind for name, kind in _types(options).items()}
    for name, value in values.items():
        key = f"{prefix}.{name}"
        if key not in types:
            raise InputError(_unknown(key, types))
        if value is None and type(None) not in get_args(types[key]):
            raise InputError(_not_allowed(key, "null", types))
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    for key, kind in types.items():
        field = options.__dataclass_fields__[key.removeprefix(f"{prefix}.")]
        parser.add_argument(f"--{key}", type=kind, default=field.default)
    try:
        parsed = parser.parse_object({f"{prefix}.{name}": value for name, value in values.items()})
    except (jsonargparse.ArgumentError, TypeError) as error:
        raise InputError(_one_line(error, types)) from None
    return options(**{name: parsed[f"{prefix}.{name}"] for name in options.__dataclass_fields__})


def to_yaml(config: object) -> str:
    """Return the resolved config as YAML, with the keys in the order of the dataclass."""
    return yaml.safe_dump(asdict(config), sort_keys=False)


def differences(there: dict[str, Any], here: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted keys whose values differ, each as 'key: VALUE there, VALUE here'."""
    lines = []
    for key in {**there, **here}:
        old, new = there.get(key), here.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old!r} there, {new!r} here")
    return lines
