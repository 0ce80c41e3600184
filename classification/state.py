"""All that training changes, and the form in which a checkpoint keeps it."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from classification.config import ClassifierConfig, OptimConfig
from classification.models import FORMAT, build
from classification.training_data import TrainingData
from convnorm.experiment import streams
from convnorm.experiment.run.averaging import averaged, gather_statistics
from convnorm.experiment.run.batches import Batches
from convnorm.experiment.run.distributed import Process
from convnorm.experiment.run.meter import Meter

STATISTICS_IMAGES = 10_000  # at most, in whole batches, that statistics of the average are of
TERMS = ("loss", "accuracy", "weight_penalty")  # of the log; on the images as trained on


class State:
    """The networks and everything else that the next step depends on.

    network, ema: the trained network and its average over steps, None where none is kept.
    perturbation: (N, C, H, W) in [-eps, eps], what Free adds to the images; N is this process's
        part of the batch.
    seen: (N, C, H, W) in [0, 1], the images of the last update as the network saw them.
    step, steps: how many are done, and how many there are.
    best: the epoch, the step and the scores of the network that was selected so far, None before
        the first selection.
    """

    def __init__(self, config: ClassifierConfig, data: TrainingData, batches: Batches):
        self.config, self.classes, self.data_sha256 = config, data.train.classes, data.sha256
        self.process, self.local_slice = batches.process, batches.local_slice
        self.per_epoch, device = batches.per_epoch, self.process.device
        self.network = build(config, len(self.classes), data.mean, data.std).to(device)
        # Nothing here draws from the global state; a layer that does must not see what was before.
        torch.manual_seed(streams.generator("cpu", config.seed, "layers").initial_seed())
        self.ema = averaged(self.network, config.train.ema_decay)
        # Whole batches in one order, as they are: in every process the same.
        self.plain_batches = Batches(
            batches.data,
            config.train.batch_size,
            config.seed,
            Process(device),
            stream=("statistics",),
        )
        self.gathered: int | None = None  # the step that the average has statistics of its own of
        self.optimizer = make_optimizer(config.optim, self.network)
        self.meter = Meter(TERMS, device)
        self.image_shape = data.train.images.shape[1:]
        size = (self.local_slice.stop - self.local_slice.start, *self.image_shape)
        self.perturbation = torch.zeros(size, device=device)
        self.seen = torch.zeros(size, device=device)
        self.step, self.steps = 0, config.train.epochs * self.per_epoch
        self.best: dict[str, Any] | None = None

    @property
    def epoch(self) -> int:
        """How many passes over the training images are done."""
        return self.step // self.per_epoch

    @property
    def final_network(self) -> nn.Module:
        """The network that is selected and evaluated: the averaged one, if there is one.

        With train.ema_statistics own, its statistics are those of its present weights: a function
        of them alone, however often they were asked for.
        """
        if self.config.train.ema_statistics == "own" and self.gathered != self.step:
            gather_statistics(self.ema, self._clean_images())
            self.gathered = self.step
        return self.network if self.ema is None else self.ema

    def _clean_images(self) -> Iterator[torch.Tensor]:
        """Batches of training images as they are, (N, C, H, W) in [0, 1]."""
        most = max(1, STATISTICS_IMAGES // self.plain_batches.batch_size)
        for index in range(min(most, self.plain_batches.per_epoch)):
            yield self.plain_batches(index)[0].float() / 255

    def means(self) -> dict[str, float]:
        """Means over processes and steps since the last call, and the learning rate."""
        return {**self.meter.means(), "lr": self.optimizer.param_groups[0]["lr"]}

    def check_finite(self, run_dir: Path) -> None:
        """Raise Stopped if a loss or a weight is NaN or infinite."""
        self.meter.check_finite(self.step, self.network.parameters(), run_dir)

    def model_state(self) -> dict[str, Any]:
        """What `models.load_classifier` reads."""
        return {
            "format": FORMAT,
            "config": asdict(self.config),
            "classes": list(self.classes),
            "channels": self.image_shape[0],
            "data_sha256": self.data_sha256,
            "step": self.step,
            "epoch": self.epoch,
            "network": self.network.state_dict(),
            "ema": None if self.ema is None else self.final_network.state_dict(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on; its draws follow from `step`."""
        return {
            **self.model_state(),
            "optimizer": self.optimizer.state_dict(),
            "perturbation": self.process.gather(self.perturbation),
            "best": self.best,
            "meter": self.meter.state_dict(),
            "rng": streams.global_state(self.process.device),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take over what `state_dict` returned for the same config."""
        self.network.load_state_dict(saved["network"])
        if self.ema is not None:
            self.ema.load_state_dict(saved["ema"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.perturbation.copy_(saved["perturbation"][self.local_slice])
        self.step, self.best = saved["step"], saved["best"]
        self.gathered = self.step  # before the checkpoint was written
        self.meter.load_state_dict(saved["meter"], self.step)
        streams.set_global_state(saved["rng"], self.process.device)


def make_optimizer(optim: OptimConfig, network: nn.Module) -> torch.optim.Optimizer:
    """SGD or AdamW over all parameters; the learning rate is set at every step.

    Weight decay spares what a module names in `undecayed`.
    """
    spared = [
        getattr(module, name)
        for module in network.modules()
        for name in getattr(module, "undecayed", ())
    ]
    groups = [{"params": [p for p in network.parameters() if all(p is not s for s in spared)]}]
    if spared:
        groups.append({"params": spared, "weight_decay": 0.0})
    if optim.name == "adamw":
        return torch.optim.AdamW(
            groups, optim.lr, betas=optim.betas, weight_decay=optim.weight_decay
        )
    return torch.optim.SGD(
        groups,
        optim.lr,
        momentum=optim.momentum,
        nesterov=optim.nesterov,
        weight_decay=optim.weight_decay,
    )
