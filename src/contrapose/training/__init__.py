"""Training: a recipe and images in, a run folder out."""
