"""Protocols: how many images of which split are scored, and which extractor scores them.

The same weights have an FID of 21.7 under one published protocol and of about 15 under another.
So a number without its protocol says little, and two protocols never share a name.
"""

from dataclasses import dataclass, replace
from typing import Literal

from convnorm.experiment.errors import InputError
from gan.extractors import EXTRACTORS

# What a protocol's name calls a field whose value was changed.
SHORT_NAMES = {
    "extractor": "extractor",
    "split": "split",
    "image_size": "size",
    "num_real": "real",
    "num_fake": "fake",
}


@dataclass(frozen=True)
class Protocol:
    """One way of scoring generated images.

    Args:
        name: What it is called in records and tables.
        extractor: Which network's features and class logits are compared.
        split: The reference's split; None for images that were given without one.
        num_real: Images of the reference; None for all that there are.
        num_fake: Generated images; None for as many as real ones.
        image_size: Height and width at which both sides are compared; before the extractor.
        is_splits: Parts over which the classifier score (IS) is averaged.
        kid_subsets: Random subsets over which the kernel distance is averaged.
        kid_subset_size: Images in each, never more than there are.
        prc_neighborhood: k of the k-th nearest neighbour that spans precision's and recall's balls
            (Kynkäänniemi et al. 2019).
    """

    name: str
    extractor: Literal[tuple(EXTRACTORS)]
    split: Literal["train", "test"] | None
    num_real: int | None
    num_fake: int | None
    is_splits: int = 10
    image_size: int = 32
    kid_subsets: int = 100
    kid_subset_size: int = 1000
    prc_neighborhood: int = 3

    @property
    def min_images(self) -> int:
        """The fewest images that can be scored.

        Each split of IS takes one, and each half of the floor takes a neighbourhood.
        """
        return max(self.is_splits, 2 * (self.prc_neighborhood + 1))

    def changed(self, **fields: str | int | None) -> "Protocol":
        """Return the protocol with `fields` changed, under a name that says so.

        Args:
            fields: New values of extractor, split, image_size, num_real or num_fake.

        Raises:
            InputError: A number is below `min_images`.
        """
        for key in ("num_real", "num_fake"):
            wanted = fields.get(key)
            if wanted is not None and wanted < self.min_images:
                raise InputError(
                    f"{key}: got {wanted}, but {self.name} needs at least {self.min_images} images"
                )
        new = {key: value for key, value in fields.items() if value != getattr(self, key)}
        if not new:
            return self
        told = ",".join(f"{short}={new[key]}" for key, short in SHORT_NAMES.items() if key in new)
        return replace(self, name=f"{self.name}[{told.lower()}]", **new)

    def fitted(self, real_available: int | None, fake_available: int | None = None) -> "Protocol":
        """Return the protocol with every number of images known.

        Args:
            real_available: Images of the reference; None for a generator, which has no end.
            fake_available: Images to score; None for a generator.

        Raises:
            InputError: There are too few images, or all images of a generator are asked for.
        """
        num_real = real_available if self.num_real is None else self.num_real
        if num_real is None:
            raise InputError(
                f"num_real: {self.name} takes all real images, but a generator has no end; "
                "say how many with --num_real N"
            )
        num_real = max(num_real, self.min_images)
        if real_available is not None and real_available < num_real:
            raise InputError(
                f"num_real: {self.name} needs {num_real} real images, the reference has "
                f"{real_available}; take fewer (at least {self.min_images}) with --num_real"
            )
        num_fake = num_real if self.num_fake is None else self.num_fake
        if fake_available is not None and fake_available < num_fake:
            raise InputError(
                f"num_fake: {self.name} needs {num_fake} generated images, got {fake_available}; "
                f"take fewer (at least {self.min_images}) with --num_fake"
            )
        size = min(self.kid_subset_size, num_real, num_fake)
        return replace(self, num_real=num_real, num_fake=num_fake, kid_subset_size=size)


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        # The most common one, e.g. of Mimicry and pytorch-gan-collections.
        Protocol("fid50k_train", "inception", "train", num_real=50_000, num_fake=50_000),
        Protocol("fid10k_test", "inception", "test", num_real=10_000, num_fake=10_000),
        # Miyato et al. 2018, table 2: 10,000 real against 5,000 fake images, IS of all 5,000.
        Protocol("paper2018_10k5k", "inception", "test", 10_000, 5_000, is_splits=1),
        Protocol("digits", "digits", "train", None, None, image_size=16, kid_subset_size=500),
        # To select a step by. 360 real images are enough for 64 features: their covariance has full
        # rank. 360 generated ones are too few: with them, an FD of 2.7 varies over latents with a
        # standard deviation of 0.24; with 1,437, of 0.08.
        Protocol("digits_test", "digits", "test", None, 1437, image_size=16, kid_subset_size=120),
    )
}


def protocol_named(name: str) -> Protocol:
    """Return the protocol called `name`, or raise an InputError that lists them."""
    if name not in PROTOCOLS:
        raise InputError(f"protocol: got {name!r}, expected one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
