"""Contrastive representation learning: train an encoder from images, measure it, explain it."""

__version__ = "0.1.0"
