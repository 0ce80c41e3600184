"""The adapter to torch-fidelity 0.4: its network and its formulas, and nothing around them.

`torch_fidelity.calculate_metrics` caches by the input's name only (other weights or data get the
old numbers back), ignores options that it does not know, wants CUDA unless told otherwise and
leaves a generator in eval mode. So this file calls its functions on features, with every option.
All features are (N, D) float32, all logits (N, K) float32, all of them finite.
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
from torch_fidelity.metric_fid import (
    KEY_METRIC_FID,
    fid_features_to_statistics,
    fid_statistics_to_metric,
)
from torch_fidelity.metric_isc import (
    KEY_METRIC_ISC_MEAN,
    KEY_METRIC_ISC_STD,
    isc_features_to_metric,
)
from torch_fidelity.metric_kid import (
    KEY_METRIC_KID_MEAN,
    KEY_METRIC_KID_STD,
    kid_features_to_metric,
)
from torch_fidelity.metric_prc import (
    KEY_METRIC_PRECISION,
    KEY_METRIC_RECALL,
    prc_features_to_metric,
)

__all__ = [
    "INCEPTION_SHA256",
    "INCEPTION_URL",
    "VERSION",
    "classifier_score",
    "covariance_rank",
    "frechet_distance",
    "inception",
    "kernel_distance",
    "precision_recall",
]

# weights-inception-2015-12-05-6726825d.pth: the TensorFlow network that defines IS and FID.
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
LEAST = 1e-6  # of the features' size: what varies less is the rounding of float32
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


def frechet_distance(features_1: Tensor, features_2: Tensor) -> float:
    """Return the Fréchet distance of the two Gaussian fits (Heusel et al. 2017, eq. 6)."""
    statistics_1, statistics_2 = (
        fid_features_to_statistics(features.cpu().double()) for features in (features_1, features_2)
    )
    return fid_statistics_to_metric(statistics_1, statistics_2, verbose=False)[KEY_METRIC_FID]


def covariance_rank(features: Tensor) -> int:
    """Return how many dimensions the features span around their mean: at most D, and below N."""
    features = features.cpu().double()
    centered = features - features.mean(dim=0)
    tall = len(centered) > centered.shape[1]
    scatter = centered.T @ centered if tall else centered @ centered.T
    return int((torch.linalg.eigvalsh(scatter) > LEAST**2 * features.square().sum()).sum())


def kernel_distance(
    features_1: Tensor, features_2: Tensor, num_subsets: int, subset_size: int
) -> tuple[float, float]:
    """Return mean and standard deviation over subsets of the squared MMD with the kernel
    (x'y / D + 1)^3 (Binkowski et al. 2018); unbiased, so that equal distributions give about 0.

    Subsets of more than half of the images have most of them in common: their standard deviation
    says nothing of the images', and is NaN.
    """
    kid = kid_features_to_metric(
        features_1,
        features_2,
        kid_subsets=num_subsets,
        kid_subset_size=subset_size,
        kid_kernel="poly",
        kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None,  # 1 / D
        kid_kernel_poly_coef0=1,
        rng_seed=RNG_SEED,
        verbose=False,
    )
    overlap = 2 * subset_size > min(len(features_1), len(features_2))
    return kid[KEY_METRIC_KID_MEAN], math.nan if overlap else kid[KEY_METRIC_KID_STD]


def classifier_score(logits: Tensor, num_splits: int) -> tuple[float, float]:
    """Return mean and standard deviation over splits of exp(E KL(p(y|x) || p(y))), at most K.

    With Inception's logits this is the inception score (Salimans et al. 2016). It is at most the
    number of images in a split. A single split has no standard deviation, and splits of one image,
    which all score 1, have none that says anything: NaN.
    """
    isc = isc_features_to_metric(logits.cpu(), splits=num_splits, shuffle=True, rng_seed=RNG_SEED)
    has_spread = num_splits > 1 and len(logits) >= 2 * num_splits
    return isc[KEY_METRIC_ISC_MEAN], isc[KEY_METRIC_ISC_STD] if has_spread else math.nan


def precision_recall(fake: Tensor, real: Tensor, neighborhood: int) -> tuple[float, float]:
    """Return precision and recall in [0, 1] (Kynkäänniemi et al. 2019, eq. 2).

    Precision is the share of fake features inside the balls around real ones, recall the share of
    real features inside the balls around fake ones.
    """
    prc = prc_features_to_metric(
        fake,
        real,
        prc_neighborhood=neighborhood,
        prc_batch_size=2000,
        save_cpu_ram=True,  # all distances at once would be 30 GB at 50,000 images
        verbose=False,
    )
    return prc[KEY_METRIC_PRECISION], prc[KEY_METRIC_RECALL]
