"""The names, the severities and the constants of the corruptions, those of make_cifar_c.py."""

SEVERITIES = (1, 2, 3, 4, 5)

# One entry for each severity. Lengths are in pixels and were chosen for 32x32 images, but those of
# elastic_transform, which are relative to the image's shorter side.
CONSTANTS = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),  # standard deviation
    "shot_noise": (500, 250, 100, 75, 50),  # photons that a white pixel receives
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),  # fraction of values replaced
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),  # radius, sigma
    "glass_blur": ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2)),  # sigma, rounds
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),  # radius, sigma
    "zoom_blur": (1.06, 1.11, 1.16, 1.21, 1.26),  # end of the range of factors
    "snow": (  # mean, standard deviation, zoom, threshold, radius, sigma, share of the image
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),  # of the image, of ice
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),  # strength, decay
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),  # added to HSV's value
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),  # factor
    "elastic_transform": (  # displacement, its smoothing's sigma, shift of the affine map's points
        (0, 0, 0.08),
        (0.05, 0.2, 0.07),
        (0.08, 0.06, 0.06),
        (0.1, 0.04, 0.05),
        (0.1, 0.03, 0.03),
    ),
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),  # size relative to the image's
    "jpeg_compression": (80, 65, 58, 50, 40),  # Pillow's quality
    "speckle_noise": (0.06, 0.1, 0.12, 0.16, 0.2),  # standard deviation relative to the value
    "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1),  # sigma
    "spatter": (  # mean, standard deviation, sigma, threshold, strength or mud's sigma, is mud
        (0.62, 0.1, 0.7, 0.7, 0.5, False),
        (0.65, 0.1, 0.8, 0.7, 0.5, False),
        (0.65, 0.3, 1, 0.69, 0.5, False),
        (0.65, 0.1, 0.7, 0.69, 0.6, True),
        (0.65, 0.1, 0.5, 0.68, 0.6, True),
    ),
    "saturate": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),  # factor, then summand
}

EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
# What the accuracy on CIFAR-10-C is the mean over.
FIFTEEN = tuple(name for name in CONSTANTS if name not in EXTRA)
