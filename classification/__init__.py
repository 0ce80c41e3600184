"""Classifiers that differ in how convolutions are normalized: networks, training, robustness."""
