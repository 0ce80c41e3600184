"""GANs that differ in how the discriminator is normalized: networks, losses, training, scores."""

from gan.models import load_generator as load

__all__ = ["load"]
