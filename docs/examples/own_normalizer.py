"""Write a normalizer of your own, and train a GAN whose discriminator has it.

python docs/examples/own_normalizer.py --run_dir runs/frobenius
"""

import sys

import torch
from torch import nn
from torch.nn.utils import parametrize

from convnorm import CATALOGUE, Normalizer
from convnorm.experiment.config import parse
from convnorm.experiment.run.distributed import Process, pick_device
from convnorm.kind import Kind
from gan.config import GanConfig
from gan.train import train


class UnitFrobenius(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / weight.norm().clamp(min=1e-12)


def normalized(layer: nn.Module, options: Normalizer) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", UnitFrobenius())


CATALOGUE["frobenius"] = Kind(  # configs, checks, spectra and reports now know it
    does="weight divided by its Frobenius norm",
    conv=normalized,
    linear=normalized,  # the last layer of a discriminator
    ignores_scale=lambda options: True,  # a factor on the weight changes nothing
)

if __name__ == "__main__":
    kind = "--normalizer.kind=frobenius"
    config, options = parse(GanConfig, "gan", "digits_convnorm", [kind, *sys.argv[1:]])
    print(train(config, options, Process(pick_device(options.device)))["log"])
