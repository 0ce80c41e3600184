"""What an evaluation of a classifier measures, and how one of other settings is told apart."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from classification.named_attacks import Budget
from convnorm.experiment.config import require

# Among the names of attacks.
CORRUPTIONS = "corruptions"
CERTIFIED = "certified"
MOST_AT_A_TIME = 100_000
Split = Literal["test", "validation"]


@dataclass(frozen=True)
class Options:
    """What is measured.

    attacks: names, see `named_attacks.NAMES`; the clean accuracy is always measured.
    split: validation is what the run held out of its training file, with the file's own labels.
    num: a random subset of so many images, drawn with `budget.seed`; None for all.
    batch_size: images at a time, up to 100,000; AutoAttack's result and that of its first stages
        depend on it.
    data_root: where the data are, if not where they were in training.
    corruptions_dir: of the official CIFAR-10-C or CIFAR-100-C, in place of corruptions made here.
    """

    attacks: tuple[str, ...] = ("fgsm", "pgd20", "sweep")
    budget: Budget = field(default_factory=Budget)
    split: Split = "test"
    num: int | None = None
    batch_size: int = 250
    data_root: str | None = None
    corruptions_dir: Path | None = None

    def __post_init__(self):
        splits = get_args(Split)
        require(self.split in splits, "split", self.split, " or ".join(splits))
        is_number = self.num is None or (type(self.num) is int and self.num >= 1)
        require(is_number, "num", self.num, "1 or more, a whole number")
        fits = 1 <= self.batch_size <= MOST_AT_A_TIME
        require(fits, "batch_size", self.batch_size, f"1 to {MOST_AT_A_TIME:,}")
        if self.corruptions_dir is not None:
            folder = str(self.corruptions_dir)
            asked = CORRUPTIONS in self.attacks
            require(asked, "corruptions_dir", folder, "corruptions among the attacks")
            require(self.split == "test", "corruptions_dir", folder, "the test split, as they are")


def differences_in_name(options: Options, own_eps: float) -> str:
    """Return how the settings differ from the usual ones, for the name of a file: "_num=60_eps=4".

    "" for the usual ones: the whole test split and the run's own eps, in grey levels. A benchmark
    measures with these, but for `num`. Which attacks are asked for, and where data lie, are no
    settings.
    """
    usual = Options(budget=Budget(own_eps))
    found = [] if options.split == usual.split else [options.split]
    for here, there, names in (
        (options, usual, ("num", "batch_size")),
        (options.budget, usual.budget, Budget.__dataclass_fields__),
    ):
        values = {name: getattr(here, name) for name in names}
        changed = [name for name in names if values[name] != getattr(there, name)]
        found += [f"{name}={_shortest(values[name])}" for name in changed]
    found += [] if options.corruptions_dir is None else ["official"]
    return "".join(f"_{each}" for each in found)


def _shortest(number: float) -> str:
    return f"{number:.15g}" if isinstance(number, float) else str(number)
