"""Prove how robust a classifier with orthogonium's convolutions is (pip install orthogonium).

python docs/examples/orthogonium_classifier.py --run_dir runs/aoc
"""

import sys
from pathlib import Path

from orthogonium.layers import AdaptiveOrthoConv2d
from orthogonium.reparametrizers import BatchedIdentity, BatchedQROrthogonalization, OrthoParams
from torch import nn

from classification.config import ClassifierConfig
from classification.evaluate import checkpoint_of, evaluate, load
from classification.evaluation_options import Options
from classification.train import train
from convnorm import CATALOGUE, Normalizer
from convnorm.experiment.config import parse
from convnorm.experiment.run.distributed import Process, pick_device
from convnorm.kind import Kind


def orthogonal(conv: nn.Conv2d, options: Normalizer) -> nn.Conv2d:
    size = conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0], conv.padding
    exact = {"ortho_params": OrthoParams(BatchedIdentity, BatchedQROrthogonalization)}
    exact |= {"padding_mode": conv.padding_mode, "bias": conv.bias is not None}
    return AdaptiveOrthoConv2d(*size, **exact)


CATALOGUE["aoc"] = Kind(does="AOC, Boissin et al. 2025", conv=orthogonal, conv_scales=True)

if __name__ == "__main__":
    words = ["--normalizer.kind=aoc", "--normalizer.batch_norm=false", *sys.argv[1:]]
    config, options = parse(ClassifierConfig, "classification", "digits_convnorm", words)
    train(config, options, Process(device := pick_device(options.device)))
    loaded = load(checkpoint_of(Path(options.run_dir), "last"), device)
    record = evaluate(loaded, Options(attacks=("certified",)), device).record
    shares = [record.clean.top1, *(point.accuracy for point in record.certified.points)]
    print("clean and certified:", *(f"{share.value:.1%}" for share in shares))
