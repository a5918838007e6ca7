"""The proof sheet: each equation of the note, measured with vae_lab's own classes and held against an exact answer.

A check is a function of no arguments that yields rows; its docstring says what is proved. Everything measured is
computed here and now, with fixed seeds, in float64. Tolerances are standard errors, or what rounding leaves.
"""

from collections.abc import Callable, Iterator

from vae_lab.proofs import beyond, bound, gradients, kl, marginal
from vae_lab.proofs.row import Row

__all__ = ["SUITE", "Row"]

SUITE: dict[str, list[Callable[[], Iterator[Row]]]] = {
    "1": [marginal.one_draw, marginal.naive, marginal.naive_bent],
    "2": [marginal.product, marginal.hopeless],
    "3-4": [bound.identity, bound.curve, bound.sheet],
    "5": [bound.lower_bound, bound.least_gap],
    "6": [bound.free_optimum, bound.drawbacks],
    "7-8": [bound.amortised],
    "9-10": [kl.densities],
    "11-15": [kl.two_integrals],
    "16": [kl.worked_example, kl.by_sampling],
    "17": [gradients.finite_differences],
    "18": [gradients.minibatches],
    "19": [gradients.reparameterised, gradients.score_function, gradients.detached],
    "20": [gradients.printed_objective, gradients.dead_knob, gradients.rescaled],
    "iwae": [beyond.weighted_bound, beyond.importance_sampling, beyond.same_means, beyond.signal_to_noise],
    "ppca": [beyond.ppca, beyond.exact_posterior],
    "s2": [beyond.best_s2],
    "ais": [beyond.annealed],
}
"""By equation of the note, or by what is beyond it."""
