"""What the settings of scores are called where a user writes them, so that errors can name them."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Keys:
    """Names of settings, each as a user would have to change it."""

    num_real: str
    num_fake: str
    weights: str
    allow_unverified_weights: str


OPTIONS = Keys("--num_real", "--num_fake", "--weights", "--allow_unverified_weights")
REPORTED = Keys(
    "score.num_real", "score.num_fake", "score.weights", "score.allow_unverified_weights"
)
SELECTING = replace(REPORTED, num_real="score.select_num_real", num_fake="score.select_num_fake")
