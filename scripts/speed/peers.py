"""A GAN's update as most repositories write it: what ours is held against.

As Mimicry and its relatives have it (read in their source): a DataLoader that turns every image
from PIL to a tensor by itself, passes of real and generated images one after the other, generated
images whose graph is built and thrown away, weight gradients of the discriminator in the
generator's update, and logits that are read after every update, for which a GPU must finish. The
networks, batches, losses and optimizers are ours.
"""

from collections.abc import Iterator
from itertools import chain, repeat

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from convnorm.experiment.data import Images
from gan.config import GanConfig
from gan.models import build

WORKERS = 4  # of the loader, where a GPU computes; beside a CPU's own work they would cost


class OneByOne(Dataset):
    """Images as torchvision's CIFAR10 gives them: each from an array, by transforms of its own."""

    def __init__(self, images: Images):
        self.pixels = images.images.permute(0, 2, 3, 1).numpy()
        channels = images.images.shape[1]
        half = (0.5,) * channels
        self.transform = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize(half, half)]
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(Image.fromarray(self.pixels[index]))


class PlainLoop:
    """The plain loop with torch's spectral norm; a call is one step, n_dis updates and one."""

    def __init__(self, config: GanConfig, images: Images, device: torch.device):
        self.config, self.device = config, device
        networks = build(config, images.images.shape[1])
        self.generator, self.discriminator = (network.to(device) for network in networks)
        for module in self.discriminator.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                spectral_norm(module)
        rates = {"lr": config.optim.lr, "betas": (config.optim.beta1, config.optim.beta2)}
        self.optim_g = torch.optim.Adam(self.generator.parameters(), **rates)
        self.optim_d = torch.optim.Adam(self.discriminator.parameters(), **rates)
        workers = WORKERS if device.type == "cuda" else 0
        loader = DataLoader(
            OneByOne(images), config.train.batch_size, shuffle=True, num_workers=workers
        )
        self.batches: Iterator[Tensor] = chain.from_iterable(repeat(loader))
        self.log: dict[str, float] = {}

    def __call__(self) -> None:
        """Take a step."""
        for _ in range(self.config.train.n_dis):
            self.log |= self.discriminator_step(next(self.batches).to(self.device))
        self.log |= self.generator_step()

    def discriminator_step(self, real: Tensor) -> dict[str, float]:
        """Update the discriminator by real images (N, C, H, W) and as many generated ones."""
        self.optim_d.zero_grad()
        d_real = self.discriminator(real)
        d_fake = self.discriminator(self.fakes(len(real)).detach())
        loss = F.relu(1 - d_real).mean() + F.relu(1 + d_fake).mean()
        loss.backward()
        self.optim_d.step()
        terms = {"loss_d": loss, "d_real": d_real.mean(), "d_fake": d_fake.mean()}
        return {name: term.item() for name, term in terms.items()}

    def generator_step(self) -> dict[str, float]:
        """Update the generator."""
        self.optim_g.zero_grad()
        loss = -self.discriminator(self.fakes(self.config.train.generator_batch_size)).mean()
        loss.backward()
        self.optim_g.step()
        return {"loss_g": loss.item()}

    def fakes(self, num: int) -> Tensor:
        """Generated images (num, C, H, W) in [-1, 1]."""
        return self.generator(torch.randn(num, self.config.model.z_dim, device=self.device))
