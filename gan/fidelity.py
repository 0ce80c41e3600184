"""The adapter to torch-fidelity 0.4: its network and its inception score.

`torch_fidelity.calculate_metrics` caches by the input's name only (other weights or data get the
old numbers back), ignores options that it does not know, wants CUDA unless told otherwise and
leaves a generator in eval mode. So this file calls its functions on logits, with every option.
"""

import io
import math

import torch
from torch import Tensor, nn
from torch_fidelity import __version__ as VERSION
from torch_fidelity.feature_extractor_inceptionv3 import (
    URL_INCEPTION_V3 as INCEPTION_URL,
)
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_isc import (
    KEY_METRIC_ISC_MEAN,
    KEY_METRIC_ISC_STD,
    isc_features_to_metric,
)

__all__ = [
    "INCEPTION_SHA256",
    "INCEPTION_URL",
    "VERSION",
    "classifier_score",
    "inception",
]

# weights-inception-2015-12-05-6726825d.pth: the TensorFlow network that defines IS and FID.
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
RNG_SEED = 2020  # torch-fidelity's own, so that its command line gives the same numbers


def inception(state_dict: dict[str, Tensor]) -> nn.Module:
    """Build the Inception network: (N, 3, H, W) uint8 -> features (N, 2048), logits (N, 1008).

    Raises:
        RuntimeError, TypeError: `state_dict` is not one of this network.
    """
    # The constructor reads a file with weights_only=False, which would run code from a hostile
    # one. So it gets a buffer, written here, with tensors that were read safely.
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    with torch.random.fork_rng(devices=[]):  # the layers draw weights before they are overwritten
        return FeatureExtractorInceptionV3(
            "inception-v3-compat",
            ["2048", "logits_unbiased"],
            feature_extractor_weights_path=buffer,
            feature_extractor_internal_dtype="float32",
        )


def classifier_score(logits: Tensor, num_splits: int) -> tuple[float, float]:
    """Return mean and standard deviation over splits of exp(E KL(p(y|x) || p(y))), at most K.

    With Inception's logits this is the inception score (Salimans et al. 2016). It is at most the
    number of images in a split. A single split has no standard deviation, and splits of one image,
    which all score 1, have none that says anything: NaN.
    """
    isc = isc_features_to_metric(logits.cpu(), splits=num_splits, shuffle=True, rng_seed=RNG_SEED)
    has_spread = num_splits > 1 and len(logits) >= 2 * num_splits
    return isc[KEY_METRIC_ISC_MEAN], isc[KEY_METRIC_ISC_STD] if has_spread else math.nan
