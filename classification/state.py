"""All that training changes, and the form in which a checkpoint keeps it."""

from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from classification.config import ClassifierConfig, OptimConfig
from classification.models import FORMAT, build
from classification.training_data import TrainingData
from convnorm.experiment import streams
from convnorm.experiment.run.averaging import averaged
from convnorm.experiment.run.batches import Batches
from convnorm.experiment.run.meter import Meter

TERMS = ("loss", "accuracy", "weight_penalty")  # of the log; on the images as trained on


class State:
    """The networks and everything else that the next step depends on.

    network, ema: the trained network and its average over steps, None where none is kept.
    perturbation: (N, C, H, W) in [-eps, eps], what Free adds to the images; N is this process's
        part of the batch.
    seen: (N, C, H, W) in [0, 1], the images of the last update as the network saw them.
    step: how many steps are done. best: the epoch, the step and the scores of the network that
        was selected so far, None before the first selection.
    """

    def __init__(self, config: ClassifierConfig, data: TrainingData, batches: Batches):
        self.config, self.classes, self.data_sha256 = config, data.train.classes, data.sha256
        self.process, self.part, self.per_epoch = batches.process, batches.share, batches.per_epoch
        device = self.process.device
        self.network = build(config, len(self.classes), data.mean, data.std).to(device)
        # Nothing here draws from the global state; a layer that does must not see what was before.
        torch.manual_seed(streams.generator("cpu", config.seed, "layers").initial_seed())
        self.ema = averaged(self.network, config.train.ema_decay)
        self.optimizer = make_optimizer(config.optim, self.network)
        self.meter = Meter(TERMS, device)
        size = (self.part.stop - self.part.start, *data.train.images.shape[1:])
        self.perturbation = torch.zeros(size, device=device)
        self.seen = torch.zeros(size, device=device)
        self.step = 0
        self.best: dict[str, Any] | None = None

    @property
    def epoch(self) -> int:
        """How many passes over the training images are done."""
        return self.step // self.per_epoch

    @property
    def final_network(self) -> nn.Module:
        """The network that is selected and evaluated: the averaged one, if there is one."""
        return self.network if self.ema is None else self.ema

    def model_state(self) -> dict[str, Any]:
        """What `models.load_classifier` reads."""
        return {
            "format": FORMAT,
            "config": asdict(self.config),
            "classes": list(self.classes),
            "channels": self.perturbation.shape[1],
            "data_sha256": self.data_sha256,
            "step": self.step,
            "epoch": self.epoch,
            "network": self.network.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on; its draws follow from `step`."""
        device = self.process.device
        return {
            **self.model_state(),
            "optimizer": self.optimizer.state_dict(),
            "perturbation": self.process.gather(self.perturbation),
            "best": self.best,
            "meter": self.meter.state_dict(),
            "rng_cpu": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take over what `state_dict` returned for the same config."""
        self.network.load_state_dict(saved["network"])
        if self.ema is not None:
            self.ema.load_state_dict(saved["ema"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.perturbation.copy_(saved["perturbation"][self.part])
        self.step, self.best = saved["step"], saved["best"]
        self.meter.load_state_dict(saved["meter"], self.step)
        torch.set_rng_state(saved["rng_cpu"])
        if saved["rng_cuda"] is not None and self.process.device.type == "cuda":
            torch.cuda.set_rng_state(saved["rng_cuda"], self.process.device)


def make_optimizer(optim: OptimConfig, network: nn.Module) -> torch.optim.Optimizer:
    """SGD or AdamW over all parameters; the learning rate is set at every step."""
    if optim.name == "adamw":
        return torch.optim.AdamW(
            network.parameters(), optim.lr, betas=optim.betas, weight_decay=optim.weight_decay
        )
    return torch.optim.SGD(
        network.parameters(),
        optim.lr,
        momentum=optim.momentum,
        nesterov=optim.nesterov,
        weight_decay=optim.weight_decay,
    )
