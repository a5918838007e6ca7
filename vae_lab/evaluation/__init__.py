"""What a trained model is worth: estimates of log p(x), and a posterior fitted to each datum."""

from vae_lab.evaluation.refine import refine

__all__ = ["refine"]
