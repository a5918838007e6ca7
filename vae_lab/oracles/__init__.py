"""Exact answers, in float64, that a trained model or an estimate can be held against."""

from vae_lab.oracles.linear_gaussian import LinearGaussian
from vae_lab.oracles.ppca import PPCA
from vae_lab.oracles.quadrature import Grid

__all__ = ["PPCA", "Grid", "LinearGaussian"]
