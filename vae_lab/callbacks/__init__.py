"""What watches a fit: pictures and the progress line."""

from vae_lab.callbacks.pictures import Pictures
from vae_lab.callbacks.progress import Progress

__all__ = ["Pictures", "Progress"]
