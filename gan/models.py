"""Generator and discriminator of a config, and the generator of a finished run."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from convnorm.experiment import streams
from convnorm.experiment.config import from_dict
from convnorm.experiment.data import to_uint8
from convnorm.experiment.errors import InputError
from convnorm.experiment.run import checkpoint
from gan.config import GanConfig
from gan.networks import build_discriminator, build_generator

FORMAT = "convnorm-suite/gan/1"


def build(config: GanConfig, channels: int) -> tuple[nn.Module, nn.Module]:
    """Return (generator, discriminator) on the CPU, initialized from the config's seed alone.

    Each network has a random stream of its own: discriminators that differ in the normalizer
    start from equal weights, next to equal generators.
    """
    model = config.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(streams.generator("cpu", config.seed, "generator").initial_seed())
        generator = build_generator(
            model.arch,
            image_size=config.data.image_size,
            channels=channels,
            z_dim=model.z_dim,
            options=model.options,
        )
        torch.manual_seed(streams.generator("cpu", config.seed, "discriminator").initial_seed())
        discriminator = build_discriminator(
            model.arch,
            config.normalizer,
            image_size=config.data.image_size,
            channels=channels,
            options=model.options,
        )
    return generator, discriminator


@torch.no_grad()
def generate(generator: nn.Module, z: torch.Tensor, batch_size: int = 256) -> torch.Tensor:
    """Images (N, C, H, W) uint8 on the CPU from latents z (N, z_dim), in evaluation mode.

    The generator's mode is left as it was found.
    """
    device = next(generator.parameters()).device
    training = generator.training
    generator.eval()
    try:
        return torch.cat(
            [to_uint8(generator(part.to(device))).cpu() for part in z.split(batch_size)]
        )
    finally:
        generator.train(training)


def sample(generator: nn.Module, z_dim: int, num: int, seed: int) -> torch.Tensor:
    """`num` generated images (num, C, H, W) uint8: a pure function of the weights and `seed`."""
    z = torch.randn(num, z_dim, generator=streams.generator("cpu", seed, "samples"))
    return generate(generator, z)


@dataclass(frozen=True)
class LoadedGenerator:
    """The generator of a run, averaged over steps if the run kept an average (`ema`)."""

    generator: nn.Module
    config: GanConfig
    step: int
    ema: bool
    sha256: str  # of the checkpoint file

    def sample(self, num: int, seed: int) -> torch.Tensor:
        """See `sample`."""
        return sample(self.generator, self.config.model.z_dim, num, seed)


def load_generator(path: Path, device: torch.device | str = "cpu") -> LoadedGenerator:
    """Read the generator of a run folder or a checkpoint file; InputError if there is none."""
    file = path / checkpoint.CHECKPOINT if path.is_dir() else path
    state, sha256 = checkpoint.load_with_hash(file, FORMAT)
    try:
        config = from_dict(GanConfig, state["config"])
        generator, _ = build(config, state["channels"])
        ema = state["ema"] is not None
        generator.load_state_dict(state["ema"] if ema else state["generator"])
        step = state["step"]
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{file}: not a complete checkpoint ({str(error).splitlines()[0]})"
        ) from None
    return LoadedGenerator(generator.to(device).eval(), config, step, ema, sha256)
