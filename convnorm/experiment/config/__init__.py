"""Configuration: dataclasses filled from YAML files and command lines, with every value checked."""

from convnorm.experiment.config.fields import differences, differing, require, to_yaml
from convnorm.experiment.config.files import CONFIGS, ROOT, find_config
from convnorm.experiment.config.parsing import (
    RunOptions,
    build,
    from_dict,
    options_of,
    parse,
    read,
    set_value,
    values_of,
)

__all__ = [
    "CONFIGS",
    "ROOT",
    "RunOptions",
    "build",
    "differences",
    "differing",
    "find_config",
    "from_dict",
    "options_of",
    "parse",
    "read",
    "require",
    "set_value",
    "to_yaml",
    "values_of",
]
