"""Configuration: a frozen dataclass filled from a YAML file and the command line."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import jsonargparse
import yaml

from convnorm.experiment.errors import InputError

Config = TypeVar("Config")

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@dataclass(frozen=True)
class RunOptions:
    """How a run is carried out; nothing here changes its result.

    run_dir: the run's folder (default: runs/<config>/seed<seed>).
    device: auto takes a CUDA device where there is one.
    checkpoint_every: steps between checkpoints.
    overwrite: delete the run that is in the folder instead of resuming it.
    """

    run_dir: str = ""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint_every: int = 1000
    overwrite: bool = False

    def __post_init__(self):
        require(self.checkpoint_every >= 1, "checkpoint_every", self.checkpoint_every, "1 or more")


def require(condition: bool, key: str, value: object, expected: str) -> None:
    """Raise an InputError that names the key, its value and what was expected."""
    if not condition:
        raise InputError(f"{key}: {value!r} is not allowed; expected {expected}")


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key given twice, of which YAML silently takes the last."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"the key {key!r} stands there twice")
        return super().construct_mapping(node, deep)


def find_config(name: str, pipeline: str) -> Path:
    """Return the file of a config: a path, else a name in configs/<pipeline>/."""
    folder = CONFIGS / pipeline
    for candidate in (Path(name), folder / name, folder / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
    raise InputError(f"--cfg {name}: no such file; configs/{pipeline} has {known}")


def _check_yaml(path: Path, config: type) -> None:
    try:
        content = yaml.load(path.read_text(), _UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: not a readable YAML file ({error})") from None
    if content is not None and not isinstance(content, dict):
        raise InputError(f"{path}: expected keys and values, not a {type(content).__name__}")
    for key, value in (content or {}).items():
        field = config.__dataclass_fields__.get(key)
        if field is not None and is_dataclass(field.type) and not isinstance(value, dict):
            raise InputError(f"{path}: {key}: {value!r} is not allowed; expected keys and values")


def _one_line(error: Exception) -> str:
    """jsonargparse's message in the words of every other error of ours."""
    message = " ".join(str(error).split())
    found = re.fullmatch(r'Parser key "(.+?)": Expected an? (.+)\. Got value: (.*)', message)
    if not found:
        return message
    key, expected, value = found.groups()
    expected = re.sub(r"<class '(\w+)'>", r"\1", expected)
    expected = re.sub(r"typing\.Literal\[(.+)\]", r"one of \1", expected)
    return f"{key}: {value} is not allowed; expected {expected}"


def _parser(config: type, **options: Any) -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(exit_on_error=False, allow_abbrev=False, **options)
    parser.add_class_arguments(config)
    return parser


def _instantiate(parser: jsonargparse.ArgumentParser, config: type, values: Any) -> Any:
    names = config.__dataclass_fields__
    built = parser.instantiate(values)
    return config(**{name: built[name] for name in names})


def parse(
    config: type[Config], pipeline: str, default: str, argv: Sequence[str] | None = None
) -> tuple[Config, RunOptions]:
    """Read the command line of a training script: --cfg NAME and any field by its dotted name.

    pipeline: the folder under configs/ where names are looked up; default: the config that is
    taken without --cfg. Raises InputError for whatever is wrong; --help and --print_config exit.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--cfg", default=default)
    known, rest = first.parse_known_args(argv)
    path = find_config(known.cfg, pipeline)
    _check_yaml(path, config)
    parser = _parser(
        config,
        description=f"Fields come from configs/{pipeline}/NAME.yaml and from the options below.",
        epilog="The same command again resumes the run.",
    )
    parser.add_argument("--cfg", action="config", help=f"a path or a name ({default})")
    parser.add_class_arguments(RunOptions)
    try:
        parser.parse_path(path)
    except (jsonargparse.ArgumentError, TypeError) as error:
        raise InputError(f"{path}: {_one_line(error)}") from None
    try:
        values = parser.parse_args(["--cfg", str(path), *rest])
    except (jsonargparse.ArgumentError, TypeError) as error:
        raise InputError(_one_line(error)) from None
    built = _instantiate(parser, config, values)
    options = _instantiate(parser, RunOptions, values)
    if not options.run_dir:
        run_dir = Path("runs") / path.stem / f"seed{built.seed}"
        options = RunOptions(**{**asdict(options), "run_dir": str(run_dir)})
    return built, options


def from_dict(config: type[Config], values: dict[str, Any]) -> Config:
    """Rebuild a config from `dataclasses.asdict` of one; unknown keys raise InputError."""
    parser = _parser(config)
    try:
        return _instantiate(parser, config, parser.parse_object(values))
    except (jsonargparse.ArgumentError, TypeError) as error:
        raise InputError(_one_line(error)) from None


def to_yaml(config: object) -> str:
    """The resolved config as YAML, keys in the order of the dataclass."""
    return yaml.safe_dump(asdict(config), sort_keys=False)


def differences(there: dict[str, Any], here: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ, as 'key: VALUE there, VALUE here'."""
    lines = []
    for key in {**there, **here}:
        old, new = there.get(key), here.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old!r} there, {new!r} here")
    return lines
