"""The networks of a config, the images of a generator, and the generator of a run."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convnorm.experiment import streams
from convnorm.experiment.data.pixels import height_and_width, to_uint8
from convnorm.experiment.errors import InputError, shortened
from convnorm.experiment.run import checkpoint
from convnorm.normalizers import fit_to_maps
from gan import published
from gan.config import GanConfig
from gan.gradient_normalization import GradientNormalized
from gan.networks import build_discriminator, build_generator
from gan.networks.conditional import Conditioning

FORMAT = "convnorm-suite/gan/5"
SAMPLES = "samples"  # the stream of the latents whose images are scored and written
PART = 256  # images that a generator makes at a time
ROWS = 100  # classes in a picture


def build(config: GanConfig, channels: int, num_classes: int = 1) -> tuple[nn.Module, nn.Module]:
    """Return (generator, discriminator) on the CPU, initialized from the config's seed alone.

    num_classes: of the data; networks that are not conditional do not depend on it.

    With model.gradient_normalization, the discriminator is the normalized function; its layers and
    weights have the names and values of the plain one.

    Each network has its own random stream: configs that differ in the normalizer alone give
    networks that start from equal weights.
    """
    model = config.model
    conditioning = Conditioning(model.conditional, num_classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(streams.generator("cpu", config.seed, "generator").initial_seed())
        generator = build_generator(
            model.arch,
            config.normalizer.of_generator.convolution,
            image_size=config.data.image_size,
            channels=channels,
            z_dim=model.z_dim,
            options=model.options,
            conditioning=conditioning,
        )
        torch.manual_seed(streams.generator("cpu", config.seed, "discriminator").initial_seed())
        discriminator = build_discriminator(
            model.arch,
            config.normalizer,
            image_size=config.data.image_size,
            channels=channels,
            options=model.options,
            conditioning=conditioning,
        )
        sides = height_and_width(config.data.image_size)
        labels = torch.zeros(1, dtype=torch.long)
        fit_to_maps(generator, torch.zeros(1, model.z_dim), labels)
        fit_to_maps(discriminator, torch.zeros(1, channels, *sides), labels)
    if model.gradient_normalization:
        discriminator = GradientNormalized(OrderedDict(discriminator.named_children()))
    return generator, discriminator


@dataclass(frozen=True)
class Latents:
    """What a generator makes N images of: z (N, z_dim) and the classes asked for, labels (N,)."""

    z: torch.Tensor
    labels: torch.Tensor

    def of_class(self, label: int) -> "Latents":
        """The same z, of which images of one class are asked for."""
        return Latents(self.z, torch.full_like(self.labels, label))


def generate(generator: nn.Module, latents: Latents, *, nearest: bool = False) -> torch.Tensor:
    """Return images (N, C, H, W) uint8 on the CPU of N latents; see `batches`."""
    return torch.cat([part.cpu() for part in batches(generator, latents, nearest=nearest)])


@torch.no_grad()
def batches(
    generator: nn.Module,
    latents: Latents,
    share: slice = slice(None),
    *,
    nearest: bool = False,
) -> Iterator[torch.Tensor]:
    """Make images (PART, C, H, W) uint8 of N latents, part by part, in evaluation mode.

    They stay on the generator's device; the last part is smaller.

    share: which of the parts are made. nearest: see `to_uint8`; of a generator that was trained
    without `train.dequantize`.

    Afterwards the generator is in the mode that it was in before.
    """
    device = next(generator.parameters()).device
    training = generator.training
    generator.eval()
    try:
        parts = [*zip(latents.z.split(PART), latents.labels.split(PART), strict=True)]
        for z, labels in parts[share]:
            yield to_uint8(generator(z.to(device), labels.to(device)), nearest=nearest)
    finally:
        generator.train(training)


@dataclass(frozen=True)
class Prior:
    """The distribution of latents: z from N(0, 1), labels uniform over the classes."""

    z_dim: int
    num_classes: int

    def draw(self, num: int, *key: int | str) -> Latents:
        """Return `num` latents on the CPU, a pure function of `key`."""
        z = torch.randn(num, self.z_dim, generator=streams.generator("cpu", *key))
        random = streams.generator("cpu", *key, "labels")
        return Latents(z, torch.randint(self.num_classes, (num,), generator=random))

    def by_class(self, columns: int, *key: int | str) -> Latents:
        """Return latents of a picture with a row for each class; a column has one z.

        Of more than `ROWS` classes, so many that are evenly spaced.
        """
        z = self.draw(columns, *key).z
        classes = torch.linspace(0, self.num_classes - 1, min(ROWS, self.num_classes)).long()
        return Latents(z.repeat(len(classes), 1), classes.repeat_interleave(columns))


def sample(
    generator: nn.Module,
    prior: Prior,
    num: int,
    seed: int,
    share: slice,
    *,
    stream: str = SAMPLES,
    nearest: bool = False,
) -> Iterator[torch.Tensor]:
    """Make `num` images as `batches` does, a function of the weights, the seed and the stream."""
    return batches(generator, prior.draw(num, seed, stream), share, nearest=nearest)


def asked_for(prior: Prior, num: int, seed: int) -> torch.Tensor:
    """Return the classes (num,) that the images of `sample` are asked for as."""
    return prior.draw(num, seed, SAMPLES).labels


@dataclass(frozen=True)
class LoadedGenerator:
    """The generator of a run, averaged over steps if the run kept an average (`ema`)."""

    generator: nn.Module
    config: GanConfig
    num_classes: int
    classes: tuple[str, ...]  # their names; none where the generator is not conditional
    step: int
    ema: bool
    sha256: str  # of the checkpoint file

    @property
    def prior(self) -> Prior:
        """Of the latents that it was trained with."""
        return Prior(self.config.model.z_dim, self.num_classes)

    def batches(self, latents: Latents) -> Iterator[torch.Tensor]:
        """Make images (N, C, H, W) uint8 on the CPU of N latents, part by part."""
        nearest = not self.config.train.dequantize
        return (part.cpu() for part in batches(self.generator, latents, nearest=nearest))

    def parts(self, num: int, seed: int, share: slice) -> Iterator[torch.Tensor]:
        """Make `num` images as a score draws them, see `gan.extraction.Sample`."""
        nearest = not self.config.train.dequantize
        return sample(self.generator, self.prior, num, seed, share, nearest=nearest)

    def labels(self, num: int, seed: int) -> torch.Tensor:
        """Return the classes (num,) of the images that `parts` makes."""
        return asked_for(self.prior, num, seed)

    def class_named(self, text: str, key: str) -> int:
        """Return the class of this name, else of this index, from 0 on.

        key: what the error names. Raises InputError for neither, and where nothing is conditional.
        """
        if not self.classes:
            raise InputError(f"{key}: {text!r} is not allowed, as the generator knows no classes")
        if text in self.classes:
            return self.classes.index(text)
        indices = [*map(str, range(len(self.classes)))]
        if text in indices:
            return indices.index(text)
        raise InputError(
            f"{key}: no class {shortened(text)!r}; expected 0 to {len(self.classes) - 1}, or one "
            f"of {shortened(', '.join(self.classes))}"
        )

    def images(self, latents: Latents) -> torch.Tensor:
        """Return images (N, C, H, W) uint8 on the CPU of N latents."""
        return torch.cat([*self.batches(latents)])

    def sample(self, num: int, seed: int) -> torch.Tensor:
        """Return generated images (num, C, H, W) uint8 on the CPU, those that `parts` makes."""
        return self.images(self.prior.draw(num, seed, SAMPLES))


def load_generator(path: Path | str, device: torch.device | str = "cpu") -> LoadedGenerator:
    """Read the generator of a run folder, a checkpoint file, or a folder of published weights.

    Raises InputError where there is none.
    """
    state, sha256, file = _read(Path(path))
    return generator_in(state, sha256, file, device)


def generator_in(
    state: dict[str, Any], sha256: str, file: Path, device: torch.device | str = "cpu"
) -> LoadedGenerator:
    """Return the generator in the state of a checkpoint `file`; InputError where it has none."""
    with checkpoint.taken_apart(file):
        config = checkpoint.config_in(state, GanConfig)
        generator, _ = build(config, state["channels"], state["num_classes"])
        ema = state["ema"] is not None
        generator.load_state_dict(state["ema"] if ema else state["generator"])
        step, num_classes = state["step"], state["num_classes"]
        classes = tuple(state["classes"]) if config.model.conditional != "none" else ()
    generator = generator.to(device).eval()
    return LoadedGenerator(generator, config, num_classes, classes, step, ema, sha256)


def _read(path: Path) -> tuple[dict[str, Any], str, Path]:
    """The state of a checkpoint, or what was published of it, its SHA-256, and what was read."""
    if published.is_published(path):
        return *published.read(path), path / published.MODEL
    file = path / checkpoint.CHECKPOINT if path.is_dir() else path
    return *checkpoint.load_with_hash(file, FORMAT), file


@dataclass(frozen=True)
class LoadedDiscriminator:
    """The discriminator of a run in evaluation mode, with the settings it was trained with."""

    network: nn.Module  # images (N, C, H, W) in [-1, 1], labels (N,) -> logits (N,)
    config: GanConfig
    channels: int
    step: int


def load_discriminator(path: Path, device: torch.device | str = "cpu") -> LoadedDiscriminator:
    """Read the discriminator of what `load_generator` reads; InputError where it has none."""
    state, _, file = _read(path)
    if "discriminator" not in state:
        raise InputError(
            f"{file}: holds a generator alone; expected last.pt of a run, or weights that were "
            "published with --discriminator"
        )
    with checkpoint.taken_apart(file):
        config = checkpoint.config_in(state, GanConfig)
        _, network = build(config, state["channels"], state["num_classes"])
        network.load_state_dict(state["discriminator"])
        channels, step = state["channels"], state["step"]
    network = network.to(device).eval().requires_grad_(False)
    return LoadedDiscriminator(network, config, channels, step)
