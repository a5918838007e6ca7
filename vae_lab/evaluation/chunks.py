"""How much may be computed at a time, and in which order noise is drawn, so that neither changes a result."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vae_lab.checks import whole
from vae_lab.distributions import reparameterise
from vae_lab.interfaces import Batch
from vae_lab.vae import VAE

MEMORY = 2**30
"""Bytes: what is computed at a time by default."""

GROUP, BLOCK = 16, 32
"""Noise is drawn for so many data and so many samples of each at a time, whatever the memory."""

CACHE, FEW = 2**24, 16
"""On a CPU a chunk of so many bytes is quickest, as its parts stay in the cache; but never fewer rows than FEW."""

Proposal = Callable[[Batch], Distribution]
Progress = Callable[[int, int], None]
"""Told how many samples are done, of how many."""


class Chunk(NamedTuple):
    """Samples z [k, b, d] of b data, which are those at `where` in the whole batch, and the q that they are from."""

    where: slice
    batch: Batch
    q: Distribution
    z: Float[Tensor, "k b d"]


def some(batch: Batch, where: slice | Tensor) -> Batch:
    """The data at `where`."""
    label = None if batch.label is None else batch.label[where]
    return Batch(batch.x[where], batch.index[where], label)


def randn(batch: Batch, *shape: int, generator: torch.Generator | None) -> Tensor:
    """N(0, 1) noise of the batch's type, where the batch is."""
    return torch.randn(shape, generator=generator, device=batch.x.device, dtype=batch.x.dtype)


def samples(
    vae: VAE,
    batch: Batch,
    n: int,
    proposal: Proposal,
    rows: int,
    generator: torch.Generator | None,
    progress: Progress | None = None,
) -> Iterator[Chunk]:
    """n samples of each datum from `proposal`, at most `rows` at a time. `proposal` is asked once for each datum.

    The noise depends on the generator, n and the data's order, not on `rows`.
    """
    N, done = len(batch.x), 0
    for start in range(0, N, GROUP):
        group = range(start, min(start + GROUP, N))
        parts = [slice(i, min(i + rows, group.stop)) for i in range(start, group.stop, rows)]
        known = [(where, some(batch, where)) for where in parts]
        proposals = [(where, data, proposal(data)) for where, data in known]
        for k in range(0, n, BLOCK):
            eps = randn(batch, min(BLOCK, n - k), len(group), vae.d, generator=generator)  # [k, b, d]
            for where, data, q in proposals:
                mine = eps[:, where.start - start : where.stop - start]
                for part in mine.split(max(1, rows // len(data.x))):
                    yield Chunk(where, data, q, reparameterise(q, part))
            done += eps.shape[0] * eps.shape[1]
            if progress is not None:
                progress(done, N * n)


def rows_within(memory: int, batch: Batch, work: Callable[[Batch], object]) -> int:
    """How many data `work` may be given at once so that it needs at most `memory` bytes (and, on a CPU, is quick).

    `work` is tried with one datum and with two; what it allocates is taken to be a constant and so much a datum.

    Raises:
        ValueError: if not even one datum fits.
    """
    whole("memory", memory)
    one, two = (allocated(work, some(batch, batch.index.new_zeros(n))) for n in (1, 2))
    each = max(1, two - one)
    fit = (memory - (one - each)) // each
    if fit < 1:
        raise ValueError(f"memory must be at least {one} bytes for this model, got {memory}")
    return fit if batch.x.is_cuda else min(fit, max(FEW, CACHE // each))


def allocated(work: Callable[[Batch], object], batch: Batch) -> int:
    """The bytes of all tensors that `work` makes, those freed on the way included: more than it needs at any time."""
    with _Allocations() as made:
        work(batch)
    return made.bytes


@final
class _Allocations(TorchDispatchMode):
    """Adds up what operators return in storage of their own, backward passes and layers' insides included."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        out = func(*args, **(kwargs or {}))
        given = {_place(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        new = {_place(t): t.untyped_storage().nbytes() for t in tree_leaves(out) if isinstance(t, Tensor)}
        self.bytes += sum(size for place, size in new.items() if place not in given)
        return out


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
