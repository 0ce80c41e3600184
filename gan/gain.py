"""The gain of a discriminator: how steep it is where it meets images.

The gradient of D's logit is what a generator learns from, and a factor on it alone changes how a
GAN trains (Lin, Sekar & Fanti, 2021, arXiv 2009.02773). A normalizer sets it, unasked: so it is
measured beside every score. Networks are measured as copies, and nothing of the training moves.
"""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convnorm.experiment.data import (
    DataConfig,
    Images,
    evenly_spaced,
    has_split,
    load_images,
)
from convnorm.experiment.data.pixels import from_uint8
from convnorm.experiment.run.board import GAIN
from convnorm.precision import convolutions_are_rounded
from gan.config import GanConfig
from gan.losses import Batch
from gan.models import Latents, Prior

NUM = 256  # images of each side
CHUNK = 64  # images that are differentiated at a time


@dataclass(frozen=True)
class Gain:
    """How steep a discriminator is, and how far it tells real images from fakes.

    real, fake: median over images of |dD/dx|_2, of the logit's gradient to an image x in [-1, 1].
    margin: mean logit of real images - mean logit of fakes.
    """

    real: float
    fake: float
    margin: float

    @property
    def mean(self) -> float:
        """The geometric mean of both sides, which is called the gain."""
        return math.sqrt(self.real * self.fake)

    @property
    def logged(self) -> dict[str, float]:
        """Its part of a line of log.jsonl."""
        return dict(zip(GAIN, (self.real, self.fake, self.margin), strict=True))


def input_gain(discriminator: nn.Module, real: Batch, fake: Batch) -> Gain:
    """Measure D in evaluation mode, where an image's logit depends on no other image.

    real, fake: on D's device, in [-1, 1], as they are: neither augmented nor dequantized.
    """
    still = _still(discriminator)
    d_real, slopes_real = _logits_and_slopes(still, real)
    d_fake, slopes_fake = _logits_and_slopes(still, fake)
    return Gain(
        real=slopes_real.quantile(0.5).item(),
        fake=slopes_fake.quantile(0.5).item(),
        margin=(d_real.mean() - d_fake.mean()).item(),
    )


def _still(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose products are not rounded, see `convnorm.precision`."""
    still = copy.deepcopy(network).eval().requires_grad_(False)
    device = next(network.parameters()).device
    return still.double() if convolutions_are_rounded(device.type) else still


def _dtype(network: nn.Module) -> torch.dtype:
    return next(network.parameters()).dtype


def _logits_and_slopes(still: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """D(x) and |dD/dx|_2 of every image, (N,) each, in float64."""
    logits, slopes = [], []
    parts = zip(batch.images.split(CHUNK), batch.labels.split(CHUNK), strict=True)
    with torch.enable_grad(), torch.autocast(batch.images.device.type, enabled=False):
        for images, labels in parts:
            x = images.detach().to(_dtype(still), copy=True).requires_grad_()
            d = still(x, labels)
            (slope,) = torch.autograd.grad(d.sum(), x)
            logits.append(d.detach().double())
            slopes.append(torch.linalg.vector_norm(slope.double().flatten(1), dim=1))
    return torch.cat(logits), torch.cat(slopes)


@dataclass(frozen=True)
class Probe:
    """Where the gain of a run is measured: at the same images and latents after every step.

    real: on the device of the networks. held_out: whether nothing is trained on `real`.
    """

    real: Batch
    latents: Latents
    held_out: bool

    def __call__(self, discriminator: nn.Module, generator: nn.Module) -> Gain:
        """Measure D at the real images and at those that G, in evaluation mode, makes now."""
        return input_gain(discriminator, self.real, self._fakes(generator))

    @torch.no_grad()
    def _fakes(self, generator: nn.Module) -> Batch:
        still, z, labels = _still(generator), self.latents.z, self.latents.labels
        parts = zip(z.to(_dtype(still)).split(CHUNK), labels.split(CHUNK), strict=True)
        with torch.autocast(z.device.type, enabled=False):
            return Batch(torch.cat([still(*part) for part in parts]), labels)


def probe_of(
    config: GanConfig, data: DataConfig, training: Images, device: torch.device | str
) -> Probe:
    """Return the probe of a run: a function of its data and its seed.

    data: where the images are. training: those that are trained on, from which the probe takes
    its own where the data have no test split of such images.

    Raises InputError where the test split cannot be read.
    """
    found = load_images(data, "test") if has_split(data, "test") else training
    fits = found.images.shape[1:] == training.images.shape[1:]
    found = found if fits else training  # all gray, or the only ones in colour
    chosen = evenly_spaced(len(found.images), NUM)
    latents = Prior(config.model.z_dim, len(training.classes)).draw(NUM, config.seed, "gain")
    return Probe(
        real=Batch(from_uint8(found.images[chosen]).to(device), found.labels[chosen].to(device)),
        latents=Latents(latents.z.to(device), latents.labels.to(device)),
        held_out=found is not training,
    )
