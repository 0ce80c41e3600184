"""One step of a GAN: the networks, their optimizers, and all that a checkpoint holds."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convnorm.experiment import streams
from convnorm.experiment.data import Images, from_uint8
from convnorm.experiment.run.averaging import averaged, decay_at, follow, running_statistics
from convnorm.experiment.run.batches import Batches
from convnorm.experiment.run.distributed import Process
from convnorm.experiment.run.meter import Meter
from gan.config import GanConfig
from gan.losses import DISCRIMINATOR_LOSSES, GENERATOR_LOSSES, gradient_penalty, r1
from gan.models import FORMAT, build

TERMS = ("loss_d", "loss_g", "d_real", "d_fake", "penalty", "weight_penalty")  # of the log


class Trainer:
    """Networks, optimizers and everything else that a checkpoint holds."""

    def __init__(self, config: GanConfig, images: Images, process: Process):
        self.config, self.process = config, process
        self.channels = images.images.shape[1]
        self.data_sha256 = images.sha256()
        train = config.train
        process.share(train.generator_batch_size, "train.generator_batch_size")
        self.batches = Batches(
            images.to(process.device), train.batch_size, config.seed, process, flip=train.flip
        )
        self.generator, self.discriminator = (
            network.to(process.device) for network in build(config, self.channels)
        )
        # Nothing here draws from the global state; a layer that does must not see what was before.
        torch.manual_seed(streams.generator("cpu", config.seed, "layers").initial_seed())
        self.ema = averaged(self.generator, train.ema_decay)
        adam = {"lr": config.optim.lr, "betas": (config.optim.beta1, config.optim.beta2)}
        self.optim_g = torch.optim.Adam(self.generator.parameters(), **adam)
        self.optim_d = torch.optim.Adam(self.discriminator.parameters(), **adam)
        self.step, self.steps = 0, config.steps
        self.meter = Meter(TERMS, process.device)

    @property
    def final_generator(self) -> nn.Module:
        """The generator that is shown and scored: the averaged one, if there is one."""
        return self.generator if self.ema is None else self.ema

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on; data order and latents follow from `step`."""
        cuda = self.process.device.type == "cuda"
        return {
            "format": FORMAT,
            "config": asdict(self.config),
            "channels": self.channels,
            "data_sha256": self.data_sha256,
            "step": self.step,
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optim_g": self.optim_g.state_dict(),
            "optim_d": self.optim_d.state_dict(),
            "meter": self.meter.state_dict(),
            "rng_cpu": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state(self.process.device) if cuda else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a checkpoint of the same config."""
        for name in ("generator", "discriminator", "optim_g", "optim_d"):
            getattr(self, name).load_state_dict(state[name])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.step = state["step"]
        self.meter.load_state_dict(state["meter"], self.step)
        torch.set_rng_state(state["rng_cpu"])
        if state["rng_cuda"] is not None and self.process.device.type == "cuda":
            torch.cuda.set_rng_state(state["rng_cuda"], self.process.device)

    def means(self) -> dict[str, float]:
        """Means over processes and steps since the last call, and the learning rate."""
        return {**self.meter.means(), "lr": self.optim_d.param_groups[0]["lr"]}

    def autocast(self) -> torch.autocast:
        """The precision in which the networks run."""
        enabled = self.config.train.precision == "bfloat16"
        return torch.autocast(self.process.device.type, torch.bfloat16, enabled=enabled)

    def random(self, draw: Callable, size: tuple[int, ...], *key: int | str) -> torch.Tensor:
        """This process's share of random numbers for a whole batch."""
        return self.process.random(draw, size, self.config.seed, *key)

    def train_step(self) -> None:
        """n_dis updates of the discriminator, one of the generator, then the averages."""
        self.set_learning_rate()
        for repeat in range(self.config.train.n_dis):
            self.discriminator_step(self.real_batch(repeat), repeat)
        self.generator_step()
        networks = (self.generator, self.discriminator)
        statistics = [b for network in networks for b in running_statistics(network)]
        self.meter.end_step(self.process, statistics)
        follow(self.ema, self.generator, decay_at(self.config.train.ema_decay, self.step))
        self.step += 1

    def real_batch(self, repeat: int) -> torch.Tensor:
        """Real images in [-1, 1]; dequantized, each grey level u fills [u, u + 1) / 128 - 1."""
        index = self.step * self.config.train.n_dis + repeat
        images, _ = self.batches(index)
        if not self.config.train.dequantize:
            return from_uint8(images)
        size = (self.config.train.batch_size, *images.shape[1:])
        noise = self.random(torch.rand, size, "augmentation", index)
        # Just below 1, or rounding would now and then lift a pixel to the next level.
        return (images + noise * (1 - 2**-16)) / 128 - 1

    def set_learning_rate(self) -> None:
        """Linear decay reaches 0 after the last step."""
        optim = self.config.optim
        left = 1 - self.step / self.config.steps if optim.decay == "linear" else 1.0
        for optimizer in (self.optim_d, self.optim_g):
            for group in optimizer.param_groups:
                group["lr"] = optim.lr * left

    def apply(
        self, optimizer: torch.optim.Optimizer, network: nn.Module, loss: torch.Tensor
    ) -> None:
        """One update of a network by the gradients of all processes."""
        optimizer.zero_grad()
        loss.backward()
        self.process.average_([p.grad for p in network.parameters() if p.grad is not None])
        optimizer.step()

    def discriminator_step(self, real: torch.Tensor, repeat: int) -> None:
        """Move D(real) up and D(G(z)) down, once."""
        loss_config, size = self.config.loss, self.config.train.batch_size
        z = self.random(torch.randn, (size, self.config.model.z_dim), "z_d", self.step, repeat)
        with self.autocast():
            with torch.no_grad():
                fake = self.generator(z)
            d_real, d_fake = self.discriminator(real).float(), self.discriminator(fake).float()
            loss = DISCRIMINATOR_LOSSES[loss_config.name](d_real, d_fake)
            self.meter.note(loss_d=loss, d_real=d_real.mean(), d_fake=d_fake.mean())
            if loss_config.gradient_penalty > 0:
                mix = self.random(torch.rand, (size, 1, 1, 1), "mix", self.step, repeat)
                penalty = gradient_penalty(self.discriminator, real, fake.float(), mix)
                loss = loss + loss_config.gradient_penalty * penalty
                self.meter.note(penalty=penalty)
            if loss_config.r1 > 0:
                penalty = r1(self.discriminator, real)
                loss = loss + loss_config.r1 * penalty
                self.meter.note(penalty=penalty)
        weight_penalty = self.config.normalizer.penalty(self.discriminator)
        if weight_penalty is not None:
            self.meter.note(weight_penalty=weight_penalty)
            loss = loss + weight_penalty
        self.apply(self.optim_d, self.discriminator, loss)
        if loss_config.weight_clip > 0:
            with torch.no_grad():
                for weight in self.discriminator.parameters():
                    weight.clamp_(-loss_config.weight_clip, loss_config.weight_clip)

    def generator_step(self) -> None:
        """Move D(G(z)) up, once."""
        size = (self.config.train.generator_batch_size, self.config.model.z_dim)
        z = self.random(torch.randn, size, "z_g", self.step)
        self.discriminator.requires_grad_(False)
        with self.autocast():
            d_fake = self.discriminator(self.generator(z)).float()
            loss = GENERATOR_LOSSES[self.config.loss.name](d_fake)
        self.meter.note(loss_g=loss)
        self.apply(self.optim_g, self.generator, loss)
        self.discriminator.requires_grad_(True)

    def check_finite(self, run_dir: Path) -> None:
        """Stop where a loss or a weight is no number; the last checkpoint was good."""
        weights = [*self.generator.parameters(), *self.discriminator.parameters()]
        self.meter.check_finite(self.step, weights, run_dir)
