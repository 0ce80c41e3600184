"""One step of training a classifier: attack the images, update the network, move the average."""

import torch
import torch.nn.functional as F

from classification.adversarial_training import (
    climbed,
    cross_entropy_of,
    divergence,
    next_perturbation,
    perturbed,
    step_size_of,
)
from classification.attacks import frozen, project
from classification.config import ClassifierConfig
from classification.draws import Draws, draw_step
from classification.state import State
from classification.training_data import TrainingData
from classification.weight_perturbation import worst_weights
from convnorm.experiment.run.averaging import follow, running_statistics
from convnorm.experiment.run.batches import Batches
from convnorm.experiment.run.distributed import Process


class Trainer:
    """Trains a network on clean or attacked images.

    `draw(step)` gives everything random in a step; `update(draws)` is a function of the draws and
    of `state`, tensors both. An update draws nothing, counts nothing and never waits for the
    device.

    eps, step_size: of the training attack, for pixels in [0, 1].
    """

    def __init__(self, config: ClassifierConfig, data: TrainingData, process: Process):
        self.config, self.process = config, process
        train = config.train
        self.batches = Batches(
            data.train.to(process.device),
            train.batch_size,
            config.seed,
            process,
            flip=train.flip,
            crop=train.crop,
        )
        self.state = State(config, data, self.batches)
        self.eps, self.step_size = config.adversary.eps / 255, step_size_of(config.adversary)

    def draw(self, step: int) -> Draws:
        """All that is random in step `step`, its images and its rates."""
        return draw_step(self.config, self.batches, step)

    def update(self, draws: Draws) -> None:
        """Train by one minibatch: a function of the draws and of tensors in the state."""
        for group in self.state.optimizer.param_groups:
            group["lr"] = draws.learning_rate
        x, labels = draws.images, draws.labels
        match self.config.adversary.kind:
            case "standard":
                self.descend(x, labels)
            case "free":
                self.free_updates(x, labels)
            case "fast" | "pgd":
                self.descend(self.attack(x, labels, draws.start), labels, awp=draws.awp)
            case "trades":
                x_adv = self.attack_predictions(x, draws.start)
                self.descend(x, labels, x_adv, awp=draws.awp)
        self.state.meter.end_step(self.process, running_statistics(self.state.network))
        follow(self.state.ema, self.state.network, draws.ema_decay)

    # The images that an adversary makes.

    def free_updates(self, x: torch.Tensor, labels: torch.Tensor) -> None:
        """Several updates on one minibatch, each of which also moves the perturbation."""
        perturbation = self.state.perturbation
        if self.config.adversary.reset_perturbation:
            perturbation.zero_()
        for _ in range(self.config.adversary.repeats):
            moved = x + perturbation
            image = moved.clamp(0, 1).requires_grad_()
            self.descend(image, labels)
            # Not through the clamp: since torch 2.14 its gradient at 0 and 1 themselves, where
            # black and white pixels begin, is 0 and no longer 1.
            gradient = image.grad.masked_fill(image != moved, 0)
            perturbation.copy_(
                next_perturbation(perturbation, gradient, eps=self.eps, step_size=self.step_size)
            )

    def attack(self, x: torch.Tensor, labels: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        """Images that raise the cross-entropy, by one step (fast) or several (pgd)."""
        adversary, loss = self.config.adversary, cross_entropy_of(labels)
        fast = adversary.kind == "fast"
        budget = self.budget(1 if fast else adversary.steps)
        with self.autocast():
            if fast and adversary.as_published:  # in training mode (Wong et al., train_fgsm.py)
                begin = project(x + start, x, "linf", self.eps)
                return climbed(self.state.network, loss, x, begin, **budget)
            return perturbed(self.state.network, loss, x, start, **budget)

    def attack_predictions(self, x: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        """Images whose predictions are far from those of the clean ones (trades)."""
        network, budget = self.state.network, self.budget(self.config.adversary.steps)
        with self.autocast(), frozen(network):
            with torch.no_grad():
                clean_logits = network(x)

            def loss(logits: torch.Tensor) -> torch.Tensor:
                return divergence(logits, clean_logits)

            if self.config.adversary.as_published:  # from outside of [0, 1] too (trades.py)
                return climbed(network, loss, x, x + start, **budget)
            return perturbed(network, loss, x, start, **budget)

    def budget(self, steps: int) -> dict[str, float]:
        """The ball, and the steps in it, of an attack."""
        return {"eps": self.eps, "step_size": self.step_size, "steps": steps}

    # The loss, and the step down its gradient.

    def loss(
        self, x: torch.Tensor, labels: torch.Tensor, x_adv: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss on the images, a scalar, and the logits of x, (N, classes).

        The cross-entropy of x; plus, where x_adv is given, beta times the mean divergence of its
        predictions from those of x (Zhang et al., 2019), which the published form computes anew
        after those of x_adv.
        """
        network, adversary = self.state.network, self.config.adversary
        with self.autocast():
            logits = network(x).float()
            loss = F.cross_entropy(
                logits, labels, label_smoothing=self.config.train.label_smoothing
            )
            if x_adv is not None:
                attacked = network(x_adv)
                clean = network(x) if adversary.as_published else logits
                loss = loss + adversary.beta * (divergence(attacked, clean) / len(x))
        return loss, logits

    def descend(
        self,
        x: torch.Tensor,
        labels: torch.Tensor,
        x_adv: torch.Tensor | None = None,
        awp: float = 0.0,
    ) -> None:
        """Update the weights once, by the gradients of all processes.

        The gradient is that of the loss on the images plus the normalizer's penalty, at the weights
        that `awp` perturbs to raise the former; what is noted is their values there.
        """
        state = self.state
        with worst_weights(
            state.network, lambda: self.loss(x, labels, x_adv)[0], awp, self.process
        ):
            loss, logits = self.loss(x, labels, x_adv)
            accuracy = (logits.argmax(1) == labels).float().mean()
            state.meter.note(loss=loss, accuracy=accuracy)
            penalty = self.config.normalizer.penalty(state.network)
            if penalty is not None:
                state.meter.note(weight_penalty=penalty)
                loss = loss + penalty
            state.optimizer.zero_grad()
            loss.backward()
        gradients = [p.grad for p in state.network.parameters() if p.grad is not None]
        self.process.average_(gradients)
        state.optimizer.step()
        state.seen.copy_((x if x_adv is None else x_adv).detach())

    def autocast(self) -> torch.autocast:
        """The network's precision; to be left before weights change, because it caches casts."""
        enabled = self.config.train.precision == "bfloat16"
        return torch.autocast(self.process.device.type, torch.bfloat16, enabled=enabled)
