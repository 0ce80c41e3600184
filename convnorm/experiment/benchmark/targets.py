"""Gains that a grid gives in place of a number, and the file that keeps the numbers found for them.

`{init_matched: G}` and `{plateau_matched: G}` stand for the factor at which a run has the gain G.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from convnorm.experiment import codec, files
from convnorm.experiment.benchmark.pipeline import Matching
from convnorm.experiment.config import differences, require
from convnorm.experiment.config.fields import shown
from convnorm.experiment.errors import InputError
from convnorm.experiment.records import How, Match, Matched
from convnorm.experiment.run.checkpoint import completed

MATCHED = "matched.json"
PILOTS = "pilots"  # the folder of the runs that only tell a gain
HOWS = get_args(How)
LARGEST = 10**6  # of a gain


@dataclass(frozen=True)
class Target:
    """A gain that is asked for, and when it counts."""

    how: How
    gain: float

    def __str__(self) -> str:
        """As the label of a cell."""
        whole = self.gain.is_integer()
        return f"{self.how} {json.dumps(int(self.gain) if whole else self.gain)}"


def is_result(path: Path) -> bool:
    """Whether a path below a folder of runs is of one that counts: no pilot run, nothing hidden."""
    return not any(part.startswith(".") or part == PILOTS for part in path.parts)


def target_of(value: Any) -> Target | None:
    """Return the target that a value of a grid stands for; None for any other value."""
    if not isinstance(value, dict) or len(value) != 1:
        return None
    ((how, gain),) = value.items()
    fits = how in HOWS and type(gain) in (int, float) and 0 < gain < LARGEST
    return Target(how, float(gain)) if fits else None


def check_value(where: str, key: str, value: Any, matching: Matching | None) -> None:
    """Refuse what is no value of the factor, and a gain where there is no factor to find for it.

    where: what the error names: the axis with the label, or `set`.
    """
    if matching is not None and key == matching.key:
        good = type(value) in (int, float) or target_of(value) is not None
        gains = " or ".join(f"{{{how}: GAIN}}" for how in HOWS)
        expected = f"a number, or {gains} with a gain of more than 0 and less than {LARGEST}"
        require(good, where, value, expected)
    elif isinstance(value, dict) and set(HOWS) & {*value}:
        alone = f"{matching.key} alone is matched" if matching else "this pipeline matches no gain"
        raise InputError(f"{where}: {shown(value)} is not allowed; expected a plain value: {alone}")


@dataclass(frozen=True)
class Goal:
    """What a cell wants.

    config: of its runs, but for the factor and the seed. relevant: all of it that the gain depends
    on, as JSON. doubts: see `Matching.check`.
    """

    cell: str
    target: Target
    config: Any
    relevant: dict[str, Any]
    doubts: tuple[str, ...]

    def differences(self, match: Match) -> list[str]:
        """In what a match was found for something else; options that are newer do not count."""
        here = {"matched": self.target.how, "gain": self.target.gain}
        return differences(
            asked_of(match, self.config), here | completed(self.relevant, self.config)
        )


def asked_of(match: Match, config: Any) -> dict[str, Any]:
    """Return all that a match was found for. config: any of the kind of its runs' configs."""
    return {"matched": match.how, "gain": match.target, **completed(match.config, config)}


def goal_of(cell: str, target: Target, config: Any, matching: Matching) -> Goal:
    """Return what a cell wants; InputError where no factor can lead to it."""
    try:
        doubts = matching.check(config, target.how)
    except InputError as error:
        raise InputError(f"{cell}: {error}") from None
    relevant = json.loads(json.dumps(matching.relevant(config, target.how)))
    return Goal(cell, target, config, relevant, doubts)


def check_seeds(seeds: Sequence[int], matching: Matching) -> None:
    """Refuse to judge runs by what a run of the same seed has decided."""
    good = not set(seeds) & set(matching.seeds)
    others = ", ".join(map(str, matching.seeds))
    require(good, "seeds", list(seeds), f"others than {others}, by which gains are matched")


def read(folder: Path) -> tuple[Match, ...]:
    """Return what matched.json holds; nothing where there is no such file."""
    expected = "what this version has written, or no file, which matches all gains anew"
    content = codec.read_if_there(Matched, folder / MATCHED, expected)
    return () if content is None else content.matches


def add(folder: Path, match: Match) -> None:
    """Add a match to matched.json, atomically."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"folder: {folder} cannot be used ({error.strerror})") from None
    files.write_json(folder / MATCHED, codec.to_json(Matched((*read(folder), match))))


def kept(goals: Sequence[Goal], folder: Path) -> dict[str, Match]:
    """Return cell -> what was found before, of the goals for which it was.

    Raises:
        InputError: A cell was matched for another gain, or with another config.
    """
    matches, found = read(folder) if goals else (), {}
    for goal in goals:
        for match in matches:
            if not goal.differences(match):
                found[goal.cell] = replace(match, cell=goal.cell)
        before = [match for match in matches if match.cell == goal.cell]
        if before and goal.cell not in found:
            differing = "; ".join(goal.differences(before[0]))
            raise InputError(
                f"{folder / MATCHED}: {goal.cell!r} was matched for another grid ({differing}); "
                "expected that grid, another --folder, or this file moved away, after which all "
                "gains are matched anew"
            )
    return found
