"""Files of reference statistics: mean and covariance of real features, without the images.

TTUR, pytorch-fid, EDM and StudioGAN publish `mu` and `sigma` alone, guided-diffusion beside images.
They say neither which network made them, nor of how many images; those written here do.
"""

import hashlib
import zipfile
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from convnorm.experiment import files
from convnorm.experiment.config.arguments import file_to_write
from convnorm.experiment.data.pixels import Size, height_and_width, size_text
from convnorm.experiment.errors import InputError
from gan.distances import LEAST, FeatureSet, Gaussian, square_root
from gan.extractor import Extractor

TOLERANCE = 1e-6  # of the largest entry or eigenvalue: some are written in float32


@dataclass(frozen=True)
class MadeBy:
    """What a file says of its statistics: the network, the SHA-256 of its weights, how many images
    there were, and their height and width in pixels.
    """

    extractor: str
    weights_sha256: str
    num_images: int
    image_size: int


SAID = tuple(field.name for field in fields(MadeBy))


@dataclass(frozen=True, eq=False)
class Statistics:
    """A Gaussian fit of real features, as a file has it.

    rank: how many dimensions the features span around their mean. made_by: None where the file does
        not say. has_images: whether the file has images too, as `arr_0`; in guided-diffusion's,
        they are some of those that the statistics are of.
    """

    file: Path
    gaussian: Gaussian
    rank: int
    made_by: MadeBy | None
    has_images: bool

    @property
    def num_images(self) -> int | None:
        """How many images they are of; None where that is unknown."""
        return None if self.made_by is None else self.made_by.num_images

    @property
    def found(self) -> str:
        """What was read, in words."""
        num = "an unknown number of" if self.num_images is None else self.num_images
        found = f"statistics of {len(self.gaussian.mean)} features of {num} images from {self.file}"
        return f"{found} (its images, arr_0, are not read)" if self.has_images else found

    @cached_property
    def root(self) -> Tensor:
        """The square root of the covariance."""
        return square_root(self.gaussian.covariance)

    def sha256(self) -> str:
        """Return the hash of mean and covariance in float64, whatever the file holds beside."""
        content = b"".join(part.cpu().numpy().tobytes() for part in self.gaussian)
        return hashlib.sha256(content).hexdigest()

    def to(self, device: torch.device) -> "Statistics":
        """Return them on a device."""
        return replace(self, gaussian=Gaussian(*(part.to(device) for part in self.gaussian)))

    def require_extractor(self, extractor: Extractor, image_size: Size) -> None:
        """Raise an InputError unless they can be of this extractor's features of such images."""
        name = extractor.spec.name
        if self.made_by is not None:
            here = replace(
                self.made_by,
                extractor=name,
                weights_sha256=extractor.weights_sha256,
                image_size=image_size,
            )
            for key in SAID:
                made, wanted = getattr(self.made_by, key), getattr(here, key)
                if made != wanted:
                    raise InputError(f"{self.file}: {key}: says {made}, expected {wanted} as here")
        mean = self.gaussian.mean
        blank = torch.zeros(1, 1, *height_and_width(image_size), dtype=torch.uint8)
        width = extractor(blank).features.shape[1]
        if len(mean) != width:
            raise InputError(
                f"{self.file}: mu: got {len(mean)} features, expected the {width} of {name}"
            )
        if extractor.spec.is_positive and mean.min() < 0:
            raise InputError(
                f"{self.file}: mu: got {mean.min():.3g}, expected at least 0: {name} has no "
                "negative features"
            )


def has_statistics(file: Path) -> bool:
    """Whether an .npz file is one of statistics: it has mu or sigma, and no key `images`.

    Guided-diffusion's files have images, as `arr_0`, beside the statistics of all images. A file
    that is none at all has no statistics.
    """
    keys = _keys(file)
    return bool(keys & {"mu", "sigma"}) and "images" not in keys


def read_statistics(file: Path) -> Statistics:
    """Read `mu` (D,) and `sigma` (D, D), and what the file says of them.

    Raises:
        InputError: A key is missing, cannot be read without running code, or is of another kind or
            shape; a number is not finite; sigma is not symmetric or has a negative eigenvalue.
    """
    arrays = {key: _array(file, key) for key in ("mu", "sigma")}
    for key, shape, wanted in (("mu", (-1,), "(D,)"), ("sigma", (-1, -1), "(D, D)")):
        array = arrays[key]
        if array is None:
            raise InputError(f"{file}: {key}: missing, expected floats {wanted}")
        fits = array.ndim == len(shape) and array.size > 0 and array.dtype.kind == "f"
        if not fits or set(array.shape) != {len(arrays["mu"])}:
            raise InputError(
                f"{file}: {key}: got {array.dtype} {array.shape}, expected floats {wanted}"
            )
        if not np.isfinite(array).all():
            raise InputError(f"{file}: {key}: got NaN or infinity, expected finite numbers")
    mean, covariance = (torch.from_numpy(arrays[key].astype(np.float64)) for key in arrays)
    off = (covariance - covariance.T).abs().max() / covariance.abs().max().clamp(min=1e-300)
    if off > TOLERANCE:
        raise InputError(f"{file}: sigma: is asymmetric by {off:.2g} of its largest entry")
    eigenvalues = torch.linalg.eigvalsh(covariance)
    if eigenvalues[0] < -TOLERANCE * eigenvalues[-1].abs():
        raise InputError(
            f"{file}: sigma: has the eigenvalue {eigenvalues[0]:.3g}, expected none below 0"
        )
    rounding = max(LEAST**2, np.finfo(arrays["sigma"].dtype).eps)
    rank = (eigenvalues > rounding * (covariance.trace() + mean.square().sum())).sum().item()
    has_images = "arr_0" in _keys(file)
    return Statistics(file, Gaussian(mean, covariance), rank, _made_by(file), has_images)


def _keys(file: Path) -> set[str]:
    try:
        with zipfile.ZipFile(file) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except Exception:  # which one depends on what is damaged; who reads its arrays says what
        return set()


def _array(file: Path, key: str) -> np.ndarray | None:
    """Return one array of a file; None where there is none of that name."""
    try:
        with np.load(file, allow_pickle=False) as archive:  # a pickle would run its code
            return archive[key] if key in archive.files else None
    except Exception as error:  # which one depends on what is damaged, pickled or encrypted
        raise InputError(f"{file}: {key}: cannot be read ({error})") from error


def _made_by(file: Path) -> MadeBy | None:
    """Return what a file says of its statistics; other files than those written here say nothing.

    Half of it would be an invitation to guess the rest.
    """
    said = {key: _array(file, key) for key in SAID}
    if all(array is None for array in said.values()):
        return None
    for key, array in said.items():
        kind, words = ("U", "a string") if MadeBy.__annotations__[key] is str else ("i", "a number")
        if array is None or array.shape != () or array.dtype.kind != kind:
            got = "nothing" if array is None else f"{array.dtype} {array.shape}"
            raise InputError(f"{file}: {key}: got {got}, expected {words}")
    made_by = MadeBy(**{key: array.item() for key, array in said.items()})
    if made_by.num_images < 2:
        raise InputError(f"{file}: num_images: got {made_by.num_images}, expected at least 2")
    return made_by


def require_new(file: Path) -> None:
    """Raise an InputError unless `file` is one that statistics can be saved to."""
    if file.suffix != ".npz":
        raise InputError(f"--save_statistics: got {file}, expected a name that ends in .npz")
    file_to_write(file, "--save_statistics")
    if file.exists() or file.is_symlink():
        raise InputError(f"--save_statistics: {file} is there already, expected a new file")


def save_statistics(
    file: Path, features: FeatureSet | Statistics, extractor: Extractor, image_size: Size
) -> None:
    """Write mean and covariance of features in float64, with all that `MadeBy` has.

    Raises InputError where the file is there already or cannot be written, for statistics, which
    are in a file, and for images that are not square.
    """
    require_new(file)
    if not isinstance(image_size, int):
        raise InputError(
            f"--save_statistics: not allowed with images of {size_text(image_size)} pixels; "
            "expected squares"
        )
    if isinstance(features, Statistics):
        raise InputError(f"--save_statistics: {features.file} has them, expected a REAL of images")
    made_by = MadeBy(extractor.spec.name, extractor.weights_sha256, len(features), image_size)
    mean, covariance = (part.cpu().numpy() for part in features.gaussian)
    arrays = {"mu": mean, "sigma": covariance} | {k: np.array(getattr(made_by, k)) for k in SAID}
    files.write(file, lambda out: np.savez(out, **arrays))
