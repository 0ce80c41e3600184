"""ConvNorm: convolutions whose every output channel is normalized by its spectrum."""

from convnorm.conversion import ConversionReport
from convnorm.convert import convert, revert
from convnorm.fixed import fixed_weights, shared_weights
from convnorm.fold import FoldReport, fold
from convnorm.layer import ConvNorm2d, from_reference
from convnorm.normalizers import CATALOGUE, Normalizer
from convnorm.transposed import ConvNormTranspose2d

__version__ = "0.1.0"

__all__ = [
    "ConvNorm2d",
    "ConvNormTranspose2d",
    "from_reference",
    "fixed_weights",
    "shared_weights",
    "convert",
    "revert",
    "ConversionReport",
    "fold",
    "FoldReport",
    "Normalizer",
    "CATALOGUE",
    "__version__",
]
