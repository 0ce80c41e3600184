"""One step of a classifier: the network, its optimizer, and all that a checkpoint holds."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from classification.adversaries import (
    STEP_SIZES,
    cross_entropy_of,
    divergence,
    next_perturbation,
    perturbed,
)
from classification.attacks import attacked
from classification.config import ClassifierConfig, OptimConfig
from classification.models import FORMAT, build
from classification.schedules import learning_rate
from classification.training_data import TrainingData
from convnorm.experiment import streams
from convnorm.experiment.run.averaging import averaged, decay_at, follow, running_statistics
from convnorm.experiment.run.batches import Batches
from convnorm.experiment.run.distributed import Process
from convnorm.experiment.run.meter import Meter

TERMS = ("loss", "accuracy", "weight_penalty")  # of the log; on the images as trained on


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


class Trainer:
    """Network, optimizer, Free's perturbation and everything else that a checkpoint holds."""

    def __init__(self, config: ClassifierConfig, data: TrainingData, process: Process):
        self.config, self.process, self.classes = config, process, data.train.classes
        self.data_sha256 = data.sha256
        train = config.train
        self.batches = Batches(
            data.train.to(process.device),
            train.batch_size,
            config.seed,
            process,
            flip=train.flip,
            crop=train.crop,
        )
        network = build(config, len(self.classes), data.mean, data.std)
        self.network = network.to(process.device)
        # Nothing here draws from the global state; a layer that does must not see what was before.
        torch.manual_seed(streams.generator("cpu", config.seed, "layers").initial_seed())
        self.ema = averaged(self.network, train.ema_decay)
        self.optimizer = make_optimizer(config.optim, self.network)
        self.step, self.steps = 0, train.epochs * self.batches.per_epoch
        self.meter = Meter(TERMS, process.device)
        images, _ = self.batches(0)
        self.seen = images.float() / 255  # the images of the last step as the network saw them
        self.perturbation = torch.zeros_like(self.seen)  # Free's
        self.best: dict[str, Any] | None = None  # what was selected so far: epoch and value
        # In units of pixels in [0, 1].
        adversary = config.adversary
        self.eps = adversary.eps / 255
        step_size = adversary.step_size
        share = STEP_SIZES.get(adversary.kind, 0)
        self.step_size = self.eps * share if step_size is None else step_size / 255

    @property
    def epoch(self) -> int:
        """How many passes over the training images are done."""
        return self.step // self.batches.per_epoch

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
        """Everything that the next step depends on; order and augmentation follow from `step`."""
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

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a checkpoint of the same config."""
        self.network.load_state_dict(state["network"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.perturbation.copy_(state["perturbation"][self.batches.share])
        self.step, self.best = state["step"], state["best"]
        self.meter.load_state_dict(state["meter"], self.step)
        torch.set_rng_state(state["rng_cpu"])
        if state["rng_cuda"] is not None and self.process.device.type == "cuda":
            torch.cuda.set_rng_state(state["rng_cuda"], self.process.device)

    def means(self) -> dict[str, float]:
        """Means over processes and steps since the last call, and the learning rate."""
        return {**self.meter.means(), "lr": self.optimizer.param_groups[0]["lr"]}

    def check_finite(self, run_dir: Path) -> None:
        """Stop where a loss or a weight is no number; the last checkpoint was good."""
        self.meter.check_finite(self.step, self.network.parameters(), run_dir)

    def train_step(self) -> None:
        """One minibatch: one update of the network, of which `free` does several; the averages."""
        rate = learning_rate(self.config.optim, self.step, self.steps, self.batches.per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        images, labels = self.batches(self.step)
        x = images.float() / 255
        match self.config.adversary.kind:
            case "standard":
                self.update(x, labels)
            case "free":
                self.free_updates(x, labels)
            case "fast" | "pgd":
                self.update(self.attack(x, labels), labels)
            case "trades":
                self.trades_update(x, labels)
        self.meter.end_step(self.process, running_statistics(self.network))
        follow(self.ema, self.network, decay_at(self.config.train.ema_decay, self.step))
        self.step += 1

    def autocast(self) -> torch.autocast:
        """The precision of the network; left before each update, as it keeps cast weights."""
        enabled = self.config.train.precision == "bfloat16"
        return torch.autocast(self.process.device.type, torch.bfloat16, enabled=enabled)

    def noise_like(self, draw: Callable, x: torch.Tensor) -> torch.Tensor:
        """This process's share of the random perturbations of a minibatch."""
        size = (self.config.train.batch_size, *x.shape[1:])
        return self.process.random(draw, size, self.config.seed, "perturbation", self.step)

    def attack(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Images moved against the network from a random start, by one step or PGD."""
        with self.autocast():
            return perturbed(
                self.network,
                cross_entropy_of(labels),
                x,
                self.eps * (2 * self.noise_like(torch.rand, x) - 1),
                eps=self.eps,
                step_size=self.step_size,
                steps=1 if self.config.adversary.kind == "fast" else self.config.adversary.steps,
            )

    def free_updates(self, x: torch.Tensor, labels: torch.Tensor) -> None:
        """Several updates on one minibatch, each of which also moves the perturbation."""
        if self.config.adversary.reset_perturbation:
            self.perturbation.zero_()
        for _ in range(self.config.adversary.repeats):
            perturbation = self.perturbation.clone().requires_grad_()
            self.update((x + perturbation).clamp(0, 1), labels)
            self.perturbation.copy_(
                next_perturbation(
                    self.perturbation, perturbation.grad, eps=self.eps, step_size=self.step_size
                )
            )

    def trades_update(self, x: torch.Tensor, labels: torch.Tensor) -> None:
        """Clean cross-entropy, plus beta times the mean divergence of the attacked images."""
        with self.autocast():
            with attacked(self.network), torch.no_grad():
                clean_logits = self.network(x)
            x_adv = perturbed(
                self.network,
                lambda logits: divergence(logits, clean_logits),
                x,
                1e-3 * self.noise_like(torch.randn, x),
                eps=self.eps,
                step_size=self.step_size,
                steps=self.config.adversary.steps,
            )
        self.update(x, labels, x_adv)

    def update(
        self, x: torch.Tensor, labels: torch.Tensor, x_adv: torch.Tensor | None = None
    ) -> None:
        """One update by the gradients of all processes; x_adv adds TRADES's second term."""
        smoothing = self.config.train.label_smoothing
        with self.autocast():
            logits = self.network(x).float()
            loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
            if x_adv is not None:
                far = divergence(self.network(x_adv), logits) / len(x)
                loss = loss + self.config.adversary.beta * far
        self.meter.note(loss=loss, accuracy=(logits.argmax(1) == labels).float().mean())
        penalty = self.config.normalizer.penalty(self.network)
        if penalty is not None:
            self.meter.note(weight_penalty=penalty)
            loss = loss + penalty
        self.optimizer.zero_grad()
        loss.backward()
        self.process.average_([p.grad for p in self.network.parameters() if p.grad is not None])
        self.optimizer.step()
        self.seen = (x if x_adv is None else x_adv).detach()
