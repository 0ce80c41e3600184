"""Which scores a GAN run has while it trains."""

from dataclasses import dataclass
from typing import Literal

from convnorm.experiment.config import require
from convnorm.experiment.config.fields import bounded, check_ranges
from convnorm.experiment.errors import InputError
from gan.keys import REPORTED, SELECTING, Keys
from gan.protocols import PROTOCOLS, Protocol


@dataclass(frozen=True)
class ScoreConfig:
    """Scores during training.

    Args:
        protocol: of the scores, as in gan.protocols; none leaves them to scripts/fid.py.
        every: steps between scores; 0 scores at the end only.
        select: a protocol on the other split, by which the best step can be chosen independently
            of the score that is reported. It is computed at the same steps, from latents of its
            own.
        num_real: real images, instead of the protocol's number; the score's name then says so.
        num_fake: generated images, likewise.
        select_num_real: real images of the protocol `select`, likewise.
        select_num_fake: generated images of the protocol `select`, likewise.
        weights: a file of Inception weights; empty for the ones in PyTorch's hub folder, which
            are downloaded if they are missing.
        allow_unverified_weights: accept `weights` that do not define FID; no score is then called
            FID.
    """

    protocol: Literal[("none", *PROTOCOLS)] = "none"
    every: int = bounded(0, least=0, most=10**9)
    select: Literal[("none", *PROTOCOLS)] = "none"
    num_real: int | None = None
    num_fake: int | None = None
    select_num_real: int | None = None
    select_num_fake: int | None = None
    weights: str = ""
    allow_unverified_weights: bool = False

    def __post_init__(self):
        check_ranges(self, "score")
        reported, selecting = self.reported, self.selecting  # with their numbers checked
        require(
            bool(self.weights) or not self.allow_unverified_weights,
            REPORTED.allow_unverified_weights,
            self.allow_unverified_weights,
            f"false where {REPORTED.weights} names no file",
        )
        if selecting is None:
            return
        if reported is None:
            raise InputError(
                f"score.select: {self.select!r} chooses among scores, and score.protocol is "
                "'none'; expected a protocol there"
            )
        if selecting.split == reported.split:
            raise InputError(
                f"score.select: {self.select!r} takes the real images that score.protocol "
                f"{self.protocol!r} reports on, the {reported.split} split; expected one of the "
                "other"
            )

    @property
    def reported(self) -> Protocol | None:
        """What is reported, with its numbers of images; None for nothing."""
        return _counted(self.protocol, self.num_real, self.num_fake, REPORTED)

    @property
    def selecting(self) -> Protocol | None:
        """What a step is selected by, with its numbers of images; None for nothing."""
        return _counted(self.select, self.select_num_real, self.select_num_fake, SELECTING)


def _counted(name: str, num_real: int | None, num_fake: int | None, keys: Keys) -> Protocol | None:
    """Return the protocol of this name with these numbers, or its own where they are None."""
    given = {"num_real": num_real, "num_fake": num_fake}
    given = {key: num for key, num in given.items() if num is not None}
    if name != "none":
        return PROTOCOLS[name].changed(keys=keys, **given)
    for key, num in given.items():
        require(False, getattr(keys, key), num, "null where there is no such score")
    return None
