"""A run that another one takes the place of waits beside it until that one begins to train.

So a slip in the command, such as a folder of images that is not there, costs no finished run.
"""

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

ASIDE, GOING = ".overwritten", ".deleted"  # folders within that of the run


def set_aside(run_dir: Path, names: Sequence[str]) -> None:
    """Move the files and folders of a run out of the way.

    names: of all that a run may have; the last one is of a file that every run has. It goes last,
    and comes back first, and so tells after a kill how far the move got.
    """
    aside = run_dir / ASIDE
    aside.mkdir()
    for name in names:
        with suppress(FileNotFoundError):
            (run_dir / name).rename(aside / name)


def is_aside(run_dir: Path) -> bool:
    """Whether a run was set aside, which only a kill leaves so."""
    return (run_dir / ASIDE).is_dir()


def bring_back(run_dir: Path, names: Sequence[str]) -> None:
    """Undo `set_aside`, also one that a kill has cut; what came in its place is deleted."""
    _delete(run_dir / GOING)
    if not is_aside(run_dir):
        return
    aside = run_dir / ASIDE
    if os.path.lexists(aside / names[-1]):
        for name in names:
            _delete(run_dir / name)
    for name in reversed(names):
        with suppress(FileNotFoundError):
            (aside / name).rename(run_dir / name)
    aside.rmdir()


def let_go(run_dir: Path) -> None:
    """Delete the run that was set aside, if one was: as a whole, whenever a kill comes."""
    with suppress(FileNotFoundError):
        (run_dir / ASIDE).rename(run_dir / GOING)
    _delete(run_dir / GOING)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
