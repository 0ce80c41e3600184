"""GANs that differ in how the discriminator is normalized: networks, losses, training, scores."""
