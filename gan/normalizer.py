"""The normalizer of a GAN: of its discriminator, and of its generator's convolutions."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields

from convnorm.catalogue import CATALOGUE
from convnorm.experiment.config import require
from convnorm.normalizers import Normalizer

OF_DISCRIMINATOR = {"scale": 1.0, "batch_norm": False}  # options that no generator reads


class _Reads(Mapping):
    """Kind that can stand in a generator -> the options that it reads there."""

    def __getitem__(self, kind: str) -> tuple[str, ...]:
        return tuple(name for name in CATALOGUE[kind].reads if name not in OF_DISCRIMINATOR)

    def __iter__(self) -> Iterator[str]:
        return (kind for kind, known in CATALOGUE.items() if known.stands_in_generators)

    def __len__(self) -> int:
        return len(list(iter(self)))


@dataclass(frozen=True)
class GanNormalizer(Normalizer):
    """The normalizer of a discriminator's layers, and the kind that a generator's have.

    Args:
        generator: how the generator's convolutions and transposed convolutions are normalized, as
            `kind`, with the same options but for scale and batch_norm, which are the
            discriminator's. The BatchNorm of its architecture stays where it is. ConvNorm filters
            transposed convolutions on the native grid and has its affine behind them, whatever
            `grid` and `affine_mode` are.
    """

    generator: str = field(default="none", metadata={"reads": _Reads()})

    def __post_init__(self) -> None:
        super().__post_init__()
        able = _Reads()
        require(
            self.generator in list(able),
            "normalizer.generator",
            self.generator,
            f"one of {', '.join(able)}",
        )

    @property
    def of_generator(self) -> Normalizer:
        """What normalizes the generator's convolutions."""
        shared = {option.name: getattr(self, option.name) for option in fields(Normalizer)}
        return Normalizer(**{**shared, "kind": self.generator, **OF_DISCRIMINATOR})
