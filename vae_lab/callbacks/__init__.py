"""What watches a fit: checkpoints, signals to stop, the record of what it logs, pictures and the progress line."""

from vae_lab.callbacks.checkpoint import AtomicIO, Checkpoint
from vae_lab.callbacks.history import History
from vae_lab.callbacks.pictures import Pictures
from vae_lab.callbacks.preemption import Preemption
from vae_lab.callbacks.progress import Progress
from vae_lab.callbacks.pruning import Pruning
from vae_lab.callbacks.wandb import WandB

__all__ = ["AtomicIO", "Checkpoint", "History", "Pictures", "Preemption", "Progress", "Pruning", "WandB"]
