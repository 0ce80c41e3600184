"""Protocols: how many images of which split are scored, and which extractor scores them.

The same weights have an FID of 21.7 under one published protocol and of about 15 under another.
So a number without its protocol says little, and two protocols never share a name.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from convnorm.experiment.data.pixels import Size, size_text
from convnorm.experiment.errors import InputError
from gan.keys import OPTIONS, Keys

# What a protocol's name calls a field whose value was changed.
SHORT_NAMES = {
    "extractor": "extractor",
    "split": "split",
    "image_size": "size",
    "num_real": "real",
    "num_fake": "fake",
    "reference": "reference",
}
MOST_IMAGES = 1_000_000  # of either side; their features alone then take 8 GB


@dataclass(frozen=True)
class Protocol:
    """One way of scoring generated images.

    Args:
        name: What it is called in records and tables.
        extractor: Which network's features and class logits are compared.
        split: The reference's split; None for images that were given without one.
        num_real: Images of the reference; None for all that there are.
        num_fake: Generated images; None for as many as real ones.
        image_size: In pixels, at which both sides are compared; before the extractor. Height and
            width where they differ.
        is_splits: Parts over which the classifier score (IS) is averaged.
        prc_neighborhood: k of the k-th nearest neighbour that spans precision's and recall's balls
            (Kynkäänniemi et al. 2019).
        coverage_neighborhood: The same for coverage (Naeem et al. 2020).
        reference: Whether real images are compared, or the statistics that a file has of them.
    """

    name: str
    extractor: str
    split: Literal["train", "test"] | None
    num_real: int | None
    num_fake: int | None
    is_splits: int = 10
    image_size: Size = 32
    prc_neighborhood: int = 3
    coverage_neighborhood: int = 5
    reference: Literal["images", "statistics"] = "images"

    @property
    def min_images(self) -> int:
        """The fewest images that can be scored.

        Each split of IS takes one, and each half of the floor takes a neighbourhood. So few give
        doubtful numbers, see `gan.doubts`.
        """
        return max(self.is_splits, 2 * (self.prc_neighborhood + 1))

    def changed(self, *, keys: Keys = OPTIONS, **fields: str | Size | None) -> "Protocol":
        """Return the protocol with `fields` changed, under a name that says so.

        Args:
            keys: What the error calls the numbers of images.
            fields: New values of extractor, split, image_size, num_real, num_fake or reference.

        Raises:
            InputError: A number is below `min_images` or above `MOST_IMAGES`.
        """
        for key in ("num_real", "num_fake"):
            wanted = fields.get(key)
            if wanted is not None and not self.min_images <= wanted <= MOST_IMAGES:
                raise InputError(
                    f"{getattr(keys, key)}: got {wanted}, but {self.name} needs at least "
                    f"{self.min_images} and takes at most {MOST_IMAGES} images"
                )
        new = {key: value for key, value in fields.items() if value != getattr(self, key)}
        if not new:
            return self
        told = ",".join(
            f"{short}={size_text(new[key]) if isinstance(new[key], tuple) else new[key]}"
            for key, short in SHORT_NAMES.items()
            if key in new
        )
        return replace(self, name=f"{self.name}[{told.lower()}]", **new)

    @property
    def facts(self) -> dict[str, Any]:
        """Its fields as JSON has them."""
        size = self.image_size
        return asdict(self) | {"image_size": list(size) if isinstance(size, tuple) else size}

    def fitted(
        self,
        real_available: int | None,
        fake_available: int | None = None,
        *,
        keys: Keys = OPTIONS,
    ) -> "Protocol":
        """Return the protocol with every number of images known.

        Args:
            real_available: Images of the reference; None for a generator, which has no end, and for
                statistics of an unknown number of images, which stays None.
            fake_available: Images to score; None for a generator.
            keys: What the error calls the numbers of images.

        Raises:
            InputError: There are too few images, or all images of a generator are asked for, or
                statistics are of other images than those asked for.
        """
        if self.reference == "statistics":
            return self._fitted_to_statistics(real_available, fake_available, keys)
        num_real = real_available if self.num_real is None else self.num_real
        if num_real is None:
            raise InputError(
                f"{keys.num_real}: {self.name} takes all real images, but a generator has no end; "
                f"say how many with {keys.num_real}"
            )
        self._require(num_real, "real images, the reference has", real_available, keys.num_real)
        num_fake = num_real if self.num_fake is None else self.num_fake
        self._require(num_fake, "generated images, got", fake_available, keys.num_fake)
        return replace(self, num_real=num_real, num_fake=num_fake)

    def _fitted_to_statistics(
        self, real_available: int | None, fake_available: int | None, keys: Keys
    ) -> "Protocol":
        if self.num_real not in (None, real_available):
            known = "an unknown number of" if real_available is None else real_available
            raise InputError(
                f"{keys.num_real}: {self.name} takes {self.num_real} real images, but the "
                f"reference statistics are of {known} images; expected neither {keys.num_real} nor "
                "a protocol that says how many"
            )
        num_fake = self.num_fake or fake_available or real_available
        if num_fake is None:
            raise InputError(
                f"{keys.num_fake}: {self.name} takes as many generated images as real ones, and "
                f"the reference statistics do not say how many; say it with {keys.num_fake}"
            )
        self._require(num_fake, "generated images, got", fake_available, keys.num_fake)
        return replace(self, num_real=real_available, num_fake=num_fake)

    def _require(self, num: int, images: str, available: int | None, key: str) -> None:
        """Raise an InputError if there are fewer images than `num`, or than can be scored."""
        if available is None:
            return
        if available < self.min_images:
            raise InputError(
                f"{self.name} needs at least {self.min_images} {images} {available}; give more"
            )
        if available < num:
            raise InputError(
                f"{key}: {self.name} needs {num} {images} {available}; "
                f"set {key} to {available}, or less (at least {self.min_images})"
            )


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        # The most common one, e.g. of Mimicry and pytorch-gan-collections.
        Protocol("fid50k_train", "inception", "train", num_real=50_000, num_fake=50_000),
        Protocol("fid10k_test", "inception", "test", num_real=10_000, num_fake=10_000),
        # Miyato et al. 2018, table 2: 10,000 real against 5,000 fake images, IS of all 5,000.
        Protocol("paper2018_10k5k", "inception", "test", 10_000, 5_000, is_splits=1),
        # On every machine: the weights install with pip. Its headline is KID, see gan.extractors.
        Protocol("kid10k_train", "lite0@96", "train", num_real=10_000, num_fake=10_000),
        Protocol("kid10k_test", "lite0@96", "test", num_real=10_000, num_fake=10_000),
        Protocol("digits", "digits", "train", None, None, image_size=16),
        # To select a step by. 360 real images are enough for 64 features: their covariance has full
        # rank. 360 generated ones are too few: with them, an FD of 2.7 varies over latents with a
        # standard deviation of 0.24; with 1,437, of 0.08.
        Protocol("digits_test", "digits", "test", None, 1437, image_size=16),
    )
}


# For images that come without a split: who gives them has chosen them.
ALL_IMAGES = Protocol("all_images", "inception", None, None, None)


def protocol_named(name: str) -> Protocol:
    """Return the protocol called `name`, or raise an InputError that lists them."""
    if name not in PROTOCOLS:
        raise InputError(f"protocol: got {name!r}, expected one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
