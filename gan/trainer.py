"""The method: a step of a GAN is n_dis updates of the discriminator and one of the generator."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from convnorm.experiment import streams
from convnorm.experiment.data import Images
from convnorm.experiment.run.averaging import follow
from convnorm.experiment.run.capture import Captured
from convnorm.experiment.run.distributed import Process
from convnorm.experiment.run.global_batch_norm import with_global_statistics
from convnorm.fixed import shared_weights
from gan.augmentation import augmented
from gan.config import GanConfig
from gan.draws import DiscriminatorDraws, Drawing, Draws, GeneratorDraws
from gan.lecam import lecam, move
from gan.losses import AUXILIARY_D, AUXILIARY_G, LOSSES, Batch, Penalty, joined
from gan.models import Latents, build
from gan.networks.conditional import judged
from gan.parts import check_sizes, parts
from gan.state import State

Terms = dict[str, Tensor]  # name in the log -> scalar


class Trainer:
    """Trains a generator against a discriminator.

    `draw(step)` gives everything random in a step; `update(draws)` is a function of the draws and
    of `state`, tensors both. An update draws nothing, counts nothing and never waits for the
    device. With train.capture it becomes a CUDA graph; whatever the state loads is loaded before.
    """

    def __init__(self, config: GanConfig, images: Images, process: Process):
        self.config, self.process = config, process
        self.draw = Drawing(config, images.to(process.device), process)
        check_sizes(config, process.world_size)
        self.image_shape = images.images.shape[1:]
        built = build(config, self.image_shape[0], len(images.classes))
        self.generator, self.discriminator = (network.to(process.device) for network in built)
        self.classifies = config.model.conditional == "acgan"
        if config.train.sync_batch_norm:
            for network in (self.generator, self.discriminator):
                with_global_statistics(network, process)
        if config.train.channels_last:  # a convolution returns what its weight or input has
            for network in (self.generator, self.discriminator):
                network.to(memory_format=torch.channels_last)
        # Nothing here draws from the global state; a layer that does must not see what was before.
        torch.manual_seed(streams.generator("cpu", config.seed, "layers").initial_seed())
        self.loss, self.penalties = LOSSES[config.loss.name], config.loss.penalties
        if config.normalizer.penalty(self.discriminator) is not None:
            self.penalties.append(Penalty("weight_penalty", 1.0, self._weight_penalty))
        terms = ("loss_d", "loss_g", "d_real", "d_fake", *(term.name for term in self.penalties))
        if config.loss.lecam > 0:
            terms += ("lecam",)
        if self.classifies:
            terms += ("class_d", "class_g")
        self.state = State(config, images, process, self.generator, self.discriminator, terms)
        if config.train.capture == "graph":
            self.update = Captured(self.update, process)

    def update(self, draws: Draws) -> None:
        """Train by one step."""
        state = self.state
        state.set_rates(draws.rates)
        for draw in draws.discriminator:
            logits = []
            state.optim_d.zero_grad()
            for part in self.parts(draw):
                with shared_weights():  # both passes and the penalties see the same ones
                    loss, terms, d_real = self.discriminator_loss(part)
                self.add_gradients(loss)
                state.meter.note(**terms)
                logits.append(d_real)
            self.apply(self.discriminator, state.optim_d)
            self.clip_weights()
            self.adapt_normalizer(logits)
        self.discriminator.requires_grad_(False)
        state.optim_g.zero_grad()
        for part in self.parts(draws.generator):
            loss, terms = self.generator_loss(part)
            self.add_gradients(loss)
            state.meter.note(**terms)
        self.apply(self.generator, state.optim_g)
        self.discriminator.requires_grad_(True)
        state.meter.end_step(self.process, state.running_statistics())
        follow(state.ema, self.generator, draws.ema_decay)

    def discriminator_loss(self, draw: DiscriminatorDraws) -> tuple[Tensor, Terms, Tensor]:
        """Low where D(real) is high and D(G(z)) is low; with what is logged of it, and D(real)."""
        real = draw.real
        with self.autocast():
            with torch.no_grad():
                fake = self.generate(draw.latents, draw.fake_augmentation)
            (d_real, errors), (d_fake, _) = self.judge_both(real, fake)
            loss = self.loss.discriminator(d_real, d_fake)
            terms = {"loss_d": loss, "d_real": d_real.mean(), "d_fake": d_fake.mean()}
            if self.classifies:
                terms["class_d"] = errors.mean()
                loss = loss + AUXILIARY_D * terms["class_d"]
            for penalty in self.penalties:
                term = penalty.function(self.discriminate, real, fake, draw.mix)
                weight = penalty.weight * draw.penalty_factor if penalty.decays else penalty.weight
                loss = loss + weight * term
                terms[penalty.name] = term
            if self.config.loss.lecam > 0:
                move(self.state.anchors, d_real, d_fake, draw.lecam_decay, self.process)
            if draw.lecam:
                terms["lecam"] = lecam(d_real, d_fake, self.state.anchors)
                loss = loss + self.config.loss.lecam * terms["lecam"]
        return loss, terms, d_real.detach()

    def generator_loss(self, draw: GeneratorDraws) -> tuple[Tensor, Terms]:
        """Low where D(G(z)) is high; with what is logged of it."""
        with self.autocast():
            fake = self.generate(draw.latents, draw.fake_augmentation)
            if draw.real is None:
                (d_fake, errors), d_real = self.judge(fake), None
            else:
                (d_fake, errors), (d_real, _) = self.judge_both(fake, draw.real)
            loss = self.loss.generator(d_fake, d_real)
            terms = {"loss_g": loss}
            if self.classifies:
                terms["class_g"] = errors.mean()
                loss = loss + AUXILIARY_G * terms["class_g"]
        return loss, terms

    def generate(self, latents: Latents, augmentation: Mapping[str, Tensor]) -> Batch:
        """G's images of the latents, with the classes that were asked for."""
        images = self.generator(latents.z, latents.labels)
        return Batch(images, latents.labels, augmentation)

    def discriminate(self, batch: Batch) -> Tensor:
        """D's logits (N,) in float32."""
        return self.judge(batch)[0]

    def judge(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """D's logits (N,) and, where it is a classifier too, -log p of each label (N,); float32.

        Every image, real or fake, meets D here and nowhere else.
        """
        images = augmented(batch.images, batch.augmentation)
        if self.classifies:
            logits, errors = judged(self.discriminator, images, batch.labels)
            return logits.float(), errors
        return self.discriminator(images, batch.labels).float(), None

    def judge_both(self, one: Batch, other: Batch) -> Sequence[tuple[Tensor, Tensor | None]]:
        """`judge` of two batches, which D sees as one with train.one_pass."""
        if not self.config.train.one_pass:
            return self.judge(one), self.judge(other)
        sizes = len(one.images), len(other.images)
        logits, errors = self.judge(joined(one, other))
        errors = (None, None) if errors is None else errors.split(sizes)
        return tuple(zip(logits.split(sizes), errors, strict=True))

    def _weight_penalty(self, *_: object) -> Tensor:
        """What the normalizer asks for, of D's weights or of the maps in its two passes."""
        return self.config.normalizer.penalty(self.discriminator)

    def parts(self, draw: DiscriminatorDraws | GeneratorDraws) -> Iterator:
        """The draws of an update in parts, which go through the networks one after another."""
        return parts(draw, self.config.train.accumulate, self.generator, self.discriminator)

    def add_gradients(self, loss: Tensor) -> None:
        """Add the gradients of the loss of a part, as far as it counts in that of the batch."""
        loss.backward(torch.full_like(loss, 1 / self.config.train.accumulate))

    def apply(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Update a network by the gradients of all processes."""
        self.process.average_([p.grad for p in network.parameters() if p.grad is not None])
        optimizer.step()

    @torch.no_grad()
    def clip_weights(self) -> None:
        """Keep D's weights in [-c, c], if asked for (Arjovsky et al., 2017)."""
        bound = self.config.loss.weight_clip
        if bound > 0:
            for weight in self.discriminator.parameters():
                weight.clamp_(-bound, bound)

    def adapt_normalizer(self, logits: list[Tensor]) -> None:
        """Show the normalizer the logits of all parts of the real images, if it asks for them."""
        if self.config.normalizer.definition.observe is not None:
            d_real = self.process.gather(torch.cat(logits))
            self.config.normalizer.observe(self.discriminator, d_real)

    def autocast(self) -> torch.autocast:
        """The precision in which the networks run.

        Casts of weights are kept until it is left, which is within an update: a captured one makes
        its own.
        """
        enabled = self.config.train.precision == "bfloat16"
        return torch.autocast(self.process.device.type, torch.bfloat16, enabled=enabled)
