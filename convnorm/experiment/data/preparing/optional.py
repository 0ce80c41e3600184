"""Packages that only some sources of images need."""

import importlib
from pathlib import Path
from types import ModuleType

from convnorm.experiment.errors import InputError


def imported(module: str, package: str, source: Path) -> ModuleType:
    """Import a module; InputError that says how its package is installed if it is not."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(
            f"{source}: needs {package}, which is not installed: pip install {package}"
        ) from None
