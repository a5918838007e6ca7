"""What a trained model is worth: estimates of log p(x), what the posterior loses and says, and a posterior fitted to
each datum."""

from vae_lab.evaluation.annealing import ais, bdmc
from vae_lab.evaluation.estimators import bound, importance, naive_mc
from vae_lab.evaluation.measures import gaps, identity, information
from vae_lab.evaluation.refinement import refine, with_encoder

__all__ = [
    "ais",
    "bdmc",
    "bound",
    "gaps",
    "identity",
    "importance",
    "information",
    "naive_mc",
    "refine",
    "with_encoder",
]
