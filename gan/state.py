"""What the updates of a GAN change, and the checkpoint that holds it."""

import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convnorm.experiment import streams
from convnorm.experiment.data import Images
from convnorm.experiment.run.averaging import averaged, running_statistics
from convnorm.experiment.run.batches import sha256_of
from convnorm.experiment.run.distributed import Process
from convnorm.experiment.run.loop import is_due
from convnorm.experiment.run.meter import Meter
from gan.config import GanConfig
from gan.models import FORMAT
from gan.schedules import Rates, rates
from gan.selection import Selected


class State:
    """Networks, optimizers, the generator's average, the meter, and how many steps are done.

    images: what the run trains on. terms: the names of what is logged.

    best: the steps that were selected; the last of them is in best.pt. Others are there only before
        a last step that is on no schedule of scores: if the run is made longer, that one never was.
    """

    def __init__(
        self,
        config: GanConfig,
        images: Images,
        process: Process,
        generator: nn.Module,
        discriminator: nn.Module,
        terms: Iterable[str],
    ):
        self.config, self.process = config, process
        self.generator, self.discriminator = generator, discriminator
        self.channels, self.classes = images.images.shape[1], images.classes
        self.data_sha256 = sha256_of(images)  # other data behind the same name are noticed
        self.ema = averaged(generator, config.train.ema_decay)
        self.optim_g, self.optim_d = self._adam(generator), self._adam(discriminator)
        self.set_rates(rates(config, step=0))
        # Of D(real) and D(fake), see gan.lecam.
        self.anchors = torch.zeros(2, device=process.device)
        self.meter = Meter(terms, process.device)
        self.step, self.steps = 0, config.steps
        self.best: tuple[Selected, ...] = ()

    @property
    def num_classes(self) -> int:
        """Of the data, whether the networks know them or not."""
        return len(self.classes)

    @property
    def final_generator(self) -> nn.Module:
        """The generator that is shown and scored: the averaged one, if there is one."""
        return self.generator if self.ema is None else self.ema

    def _adam(self, network: nn.Module) -> torch.optim.Adam:
        fused = self.config.optim.fused or None  # None: what PyTorch takes by default
        is_captured = self.config.train.capture == "graph"
        return torch.optim.Adam(network.parameters(), fused=fused, capturable=is_captured)

    def set_rates(self, rates: Rates) -> None:
        """Let the next updates of both networks have these rates.

        Learning rates that are tensors are read in every replay of a captured update. Its betas
        are those of the first step.
        """
        betas = (self.config.optim.beta1, rates.beta2)
        pairs = (self.optim_g, rates.generator), (self.optim_d, rates.discriminator)
        for optimizer, lr in pairs:
            for group in optimizer.param_groups:
                if isinstance(lr, Tensor):
                    group["lr"] = lr.float()
                else:
                    group.update(lr=lr, betas=betas)

    def running_statistics(self) -> list[Tensor]:
        """What both networks have seen of their data, which processes average."""
        return [*running_statistics(self.generator), *running_statistics(self.discriminator)]

    def means(self) -> dict[str, float]:
        """Means over processes and steps since the last call, and the learning rate.

        `lr_d` is the discriminator's, where it has one of its own.
        """
        last = rates(self.config, max(0, self.step - 1))
        has_own = self.config.optim.lr_d not in (None, self.config.optim.lr)
        own = {"lr_d": last.discriminator} if has_own else {}
        return {**self.meter.means(), "lr": last.generator, **own}

    def check_finite(self, run_dir: Path) -> None:
        """Raise Stopped where a loss or a weight is no number; the last checkpoint was good."""
        weights = [*self.generator.parameters(), *self.discriminator.parameters()]
        self.meter.check_finite(self.step, weights, run_dir)

    def select(self, score: float, record: dict[str, Any]) -> bool:
        """Keep the generator if its score is lower than any before, and return whether it is.

        score, record: see `Selected`. What is not finite is never selected: neither a score nor
        weights, which make images all the same, and of these a score that is finite.
        """
        weights = self.final_generator.parameters()
        if not math.isfinite(score) or not all(each.isfinite().all() for each in weights):
            return False
        if self.best and score >= self.best[-1].score:
            return False
        every = self.config.score.every
        on_schedule = every > 0 and self.step % every == 0
        found = Selected(self.step, score, record, _on_cpu(self._weights()))
        self.best = (found,) if on_schedule else (*self.best, found)
        return True

    def model_state(self) -> dict[str, Any]:
        """What `models.load_generator` reads."""
        named = {"classes": list(self.classes)} if self.config.model.conditional != "none" else {}
        return {
            "format": FORMAT,
            "config": asdict(self.config),
            "channels": self.channels,
            "num_classes": self.num_classes,
            **named,
            "data_sha256": self.data_sha256,
            "step": self.step,
            **self._weights(),
        }

    def _weights(self) -> dict[str, Any]:
        """Of all from which images are made."""
        return {
            "generator": self.generator.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
        }

    def best_model(self) -> dict[str, Any] | None:
        """What best.pt holds: `model_state` at the step that was selected, None before any was."""
        if not self.best:
            return None
        return {**self.model_state(), "step": self.best[-1].step, **self.best[-1].weights}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on; data order and latents follow from `step`."""
        return {
            **self.model_state(),
            "discriminator": self.discriminator.state_dict(),
            "best": [vars(each) for each in self.best],
            "optim_g": self.optim_g.state_dict(),
            "optim_d": self.optim_d.state_dict(),
            "anchors": self.anchors,
            "meter": self.meter.state_dict(),
            "rng": streams.global_state(self.process.device),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a checkpoint of the same config."""
        for name in ("generator", "discriminator"):
            getattr(self, name).load_state_dict(state[name])
        for name in ("optim_g", "optim_d"):
            optimizer = getattr(self, name)
            # What Adam has gathered is the checkpoint's, and how it computes the config's.
            options = {"param_groups": optimizer.state_dict()["param_groups"]}
            optimizer.load_state_dict({**state[name], **options})
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.anchors.copy_(state["anchors"])
        self.step = state["step"]
        every, steps = self.config.score.every, self.steps
        selected = [Selected(**each) for each in state["best"]]
        self.best = tuple(each for each in selected if is_due(each.step, every, steps))
        self.meter.load_state_dict(state["meter"], self.step)
        streams.set_global_state(state["rng"], self.process.device)


def _on_cpu(weights: dict[str, dict[str, Tensor] | None]) -> dict[str, Any]:
    """A copy of weights that further steps leave as it is."""
    return {
        network: part and {name: value.to("cpu", copy=True) for name, value in part.items()}
        for network, part in weights.items()
    }
