"""Whether a network is as sure as it is right: calibration error and negative log-likelihood."""

import torch
from torch import Tensor

from classification.per_image import Rows
from convnorm.experiment.records import Summary
from convnorm.experiment.statistics import summary

BINS = 15  # as published


def confidences(logits: Tensor, y: Tensor) -> Rows:
    """What is kept of the logits (N, classes) of images with the labels y, (N,) int64.

    confidence: the largest probability of the softmax, in [0, 1]. nll: -log of the probability of
    the label, in nats. Both are (N,) float64 and finite for all finite float32 logits.
    """
    log_p = logits.double().log_softmax(1)
    return {"confidence": log_p.amax(1).exp(), "nll": -log_p.gather(1, y[:, None]).squeeze(1)}


def calibration_error(confidence: Tensor, right: Tensor) -> float:
    """Return the expected calibration error (Guo et al., ICML 2017, eq. 3), in [0, 1].

        ECE = sum over bins m of |B_m| / n * |accuracy(B_m) - mean confidence(B_m)|

    over the 15 bins ((m - 1) / 15, m / 15] of the confidence. confidence: (N,) float64 in [0, 1].
    right: (N,) bool.

    It is biased upwards: even a calibrated network's bins miss their means by chance, together by
    up to about 0.4 sqrt(15 / n). So it has no interval, which would lie beside the truth, and only
    numbers from equally many images compare.
    """
    bins = (BINS * confidence).ceil().long().sub(1).clamp(min=0)
    excess = torch.bincount(bins, confidence - right.double(), minlength=BINS)
    return excess.abs().sum().item() / len(confidence)


def mean_nll(nll: Tensor) -> Summary:
    """Return the mean of the images' negative log-likelihoods (N,) with Student's t-interval.

    The interval is of other images. It rests on the mean being about normal, which it is not where
    a few images that the network is sure and wrong about make up most of it.
    """
    return summary(nll.tolist())
