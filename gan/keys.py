"""What the settings of scores are called where a user writes them, so that errors can name them."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Keys:
    """Names of settings, each as a user would have to change it.

    offline: what scores by weights that install with pip.
    """

    num_real: str
    num_fake: str
    weights: str
    allow_unverified_weights: str
    offline: str


OPTIONS = Keys(
    "--num_real",
    "--num_fake",
    "--weights",
    "--allow_unverified_weights",
    "--extractor lite0@96",
)
REPORTED = Keys(
    "score.num_real",
    "score.num_fake",
    "score.weights",
    "score.allow_unverified_weights",
    "score.protocol kid10k_train",
)
SELECTING = replace(
    REPORTED,
    num_real="score.select_num_real",
    num_fake="score.select_num_fake",
    offline="score.select kid10k_test",
)
