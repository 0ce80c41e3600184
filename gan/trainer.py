"""One step of a GAN: the networks, their optimizers, and all that a checkpoint holds."""

import copy
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convnorm.experiment import streams
from convnorm.experiment.batches import Batches
from convnorm.experiment.distributed import Process
from convnorm.experiment.errors import Stopped
from gan.config import GanConfig
from gan.losses import DISCRIMINATOR_LOSSES, GENERATOR_LOSSES, gradient_penalty, r1
from gan.models import FORMAT, build

# Summed on the device between two log lines; divided by the number of terms when read.
TERMS = ("loss_d", "loss_g", "d_real", "d_fake", "penalty")


class Trainer:
    """Networks, optimizers and everything else that a checkpoint holds."""

    def __init__(self, config: GanConfig, channels: int, process: Process):
        self.config, self.channels, self.process = config, channels, process
        for key in ("batch_size", "generator_batch_size"):
            process.share(getattr(config.train, key), f"train.{key}")
        self.generator, self.discriminator = (n.to(process.device) for n in build(config, channels))
        # Nothing here draws from the global state; a layer that does must not see what was before.
        torch.manual_seed(streams.generator("cpu", config.seed, "layers").initial_seed())
        self.ema = None
        if config.train.ema_decay > 0:
            self.ema = copy.deepcopy(self.generator).requires_grad_(False)
        adam = {"lr": config.optim.lr, "betas": (config.optim.beta1, config.optim.beta2)}
        self.optim_g = torch.optim.Adam(self.generator.parameters(), **adam)
        self.optim_d = torch.optim.Adam(self.discriminator.parameters(), **adam)
        self.step = 0
        self.sums = torch.zeros(len(TERMS), device=process.device)
        self.counts = dict.fromkeys(TERMS, 0)
        # How many steps were finite: a NaN in a sum stays, so the first bad one is the next.
        self.finite_steps = torch.zeros((), dtype=torch.int64, device=process.device)

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
            "step": self.step,
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optim_g": self.optim_g.state_dict(),
            "optim_d": self.optim_d.state_dict(),
            "sums": self.sums,
            "counts": self.counts,
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
        self.sums.copy_(state["sums"])
        self.counts.update(state["counts"])
        self.finite_steps.fill_(self.step)
        torch.set_rng_state(state["rng_cpu"])
        if state["rng_cuda"] is not None and self.process.device.type == "cuda":
            torch.cuda.set_rng_state(state["rng_cuda"], self.process.device)

    def note(self, **values: torch.Tensor) -> None:
        """Add values to the sums of the log, without waiting for the device."""
        for name, value in values.items():
            self.sums[TERMS.index(name)] += value.detach()
            self.counts[name] += 1

    def means(self) -> dict[str, float]:
        """Means over processes and steps since the last call, and the learning rate."""
        sums = dict(zip(TERMS, self.sums.tolist(), strict=True))
        means = {name: sums[name] / num for name, num in self.counts.items() if num > 0}
        self.sums.zero_()
        self.counts = dict.fromkeys(TERMS, 0)
        return {**means, "lr": self.optim_d.param_groups[0]["lr"]}

    def autocast(self) -> torch.autocast:
        """The precision in which the networks run."""
        enabled = self.config.train.precision == "bfloat16"
        return torch.autocast(self.process.device.type, torch.bfloat16, enabled=enabled)

    def random(self, draw: Callable, size: tuple[int, ...], *key: int | str) -> torch.Tensor:
        """This process's share of `draw` (torch.randn or torch.rand) for a whole batch."""
        device = self.process.device
        random = streams.generator(device, self.config.seed, *key)
        numbers = draw(*size, device=device, generator=random)
        return numbers[self.process.share(size[0], "batch")]

    def train_step(self, batches: Batches) -> None:
        """n_dis updates of the discriminator, one of the generator, then the averages."""
        self.set_learning_rate()
        for repeat in range(self.config.train.n_dis):
            real = batches(self.step * self.config.train.n_dis + repeat)
            self.discriminator_step(real, repeat)
        self.generator_step()
        self.update_averages()
        self.finite_steps += self.sums.isfinite().all()
        self.step += 1

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
            self.note(loss_d=loss, d_real=d_real.mean(), d_fake=d_fake.mean())
            if loss_config.gradient_penalty > 0:
                mix = self.random(torch.rand, (size, 1, 1, 1), "mix", self.step, repeat)
                penalty = gradient_penalty(self.discriminator, real, fake.float(), mix)
                loss = loss + loss_config.gradient_penalty * penalty
                self.note(penalty=penalty)
            if loss_config.r1 > 0:
                penalty = r1(self.discriminator, real)
                loss = loss + loss_config.r1 * penalty
                self.note(penalty=penalty)
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
        self.note(loss_g=loss)
        self.apply(self.optim_g, self.generator, loss)
        self.discriminator.requires_grad_(True)

    @torch.no_grad()
    def update_averages(self) -> None:
        """Sums and buffers over processes, then weights and buffers over steps (EMA)."""
        buffers = [*self.generator.buffers(), *self.discriminator.buffers()]
        self.process.average_([self.sums, *(b for b in buffers if b.is_floating_point())])
        if self.ema is None:
            return
        decay = min(self.config.train.ema_decay, (1 + self.step) / (10 + self.step))
        live = self.generator.state_dict()
        for name, average in self.ema.state_dict().items():
            if average.is_floating_point():
                average.lerp_(live[name], 1 - decay)
            else:
                average.copy_(live[name])

    def check_finite(self, run_dir: Path) -> None:
        """Stop where a loss or a weight is no number; the last checkpoint was good."""
        step, what = self.finite_steps.item() + 1, "the loss"
        if step > self.step:
            weights = [*self.generator.parameters(), *self.discriminator.parameters()]
            if torch.stack([w.isfinite().all() for w in weights]).all().item():
                return
            step, what = self.step, "a weight"
        raise Stopped(
            f"step {step}: {what} is NaN or infinite, the run cannot go on; "
            f"{run_dir} keeps the last good checkpoint, if there was one",
            code=1,
        )
