"""The YAML files under configs/: found by name, listed, and checked for their keys."""

import re
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args

from convnorm.experiment.config import yaml_text
from convnorm.experiment.config.fields import not_allowed, require, unknown
from convnorm.experiment.errors import InputError, shortened
from convnorm.experiment.paths import user_path

ROOT = Path(__file__).resolve().parents[3]  # of the clone
CONFIGS = ROOT / "configs"


def find_config(name: str, folder_name: str) -> Path:
    """Return the file of a config: `name` is a path, or a name in configs/<folder_name>/."""
    require(bool(name), "--cfg", name, "a path or a name")
    folder, path = CONFIGS / folder_name, user_path(name, "--cfg")
    for candidate in (path, folder / name, folder / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
    raise InputError(f"--cfg {name}: no such file; configs/{folder_name} has {known}")


def list_of_configs(folder_name: str) -> str:
    """Return the configs that there are, a line each, with what the first comment says."""
    names = {path.stem: _first_sentence(path) for path in (CONFIGS / folder_name).glob("*.yaml")}
    width = max(map(len, names))
    lines = [f"  {name:{width}}  {says}" for name, says in sorted(names.items())]
    return "\n".join([f"configs in configs/{folder_name}, for --cfg:", *lines])


def _first_sentence(path: Path) -> str:
    """What a config's first comment says it shows, in a line."""
    comment = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    return re.split(r"\.\s(?=[A-Z])", " ".join(comment))[0].rstrip(".")


def check_file(path: Path, types: dict[str, Any], prefix: str = "") -> None:
    content = yaml_text.read(path)
    if not isinstance(content, dict):
        found = "nothing" if content is None else f"a {type(content).__name__}"
        raise InputError(f"{path}: holds {found}; expected keys and values")
    _check_keys(path, content, types, prefix)


def _check_keys(path: Path, content: dict[Any, Any], types: dict[str, Any], prefix: str) -> None:
    """Check names, groups and nulls; jsonargparse checks the values, but lets a null pass."""
    for name, value in content.items():
        key = f"{prefix}{name}"
        if "." in str(name):
            raise InputError(
                f"{path}: {shortened(key)}: dots are for the command line; expected nested keys"
            )
        if key not in types:
            raise InputError(f"{path}: {unknown(key, types)}")
        is_group = is_dataclass(types[key])
        if is_group and isinstance(value, dict):
            _check_keys(path, value, types, f"{key}.")
        elif is_group or (value is None and type(None) not in get_args(types[key])):
            shown = "null" if value is None else value
            raise InputError(f"{path}: {not_allowed(key, shown, types)}")
