"""In what models that are stacked may differ: numbers of their parts, and d; all are padded to the greatest."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from vae_lab.engine.step import plain


def varied(models: Sequence[nn.Module], ds: Sequence[int]) -> dict[tuple[str, str], list[float]]:
    """The numbers in which the parts of the models differ, by the part's name and the number's; those that follow from
    d are none of them.

    Raises:
        NotImplementedError: if they differ in something that is no number.
    """
    seen: list[dict[tuple[str, str], Any]] = [plain(model) for model in models]
    found = {}
    for key, value in seen[0].items():
        if any(other.keys() != seen[0].keys() for other in seen):
            raise NotImplementedError("they have different parts")
        numbers = [other[key] for other in seen]
        if all(v == value for v in numbers):
            continue
        if any(isinstance(v, bool) or not isinstance(v, int | float) for v in numbers):
            raise NotImplementedError(f"they differ in {'.'.join(key)}")
        if all(isinstance(v, int) for v in numbers) and affine(ds, numbers):
            continue
        found[key] = [float(v) for v in numbers]
    return found


def affine(ds: Sequence[int], values: Sequence[int]) -> bool:
    """Whether the values are a d + b with one a > 0 and one b >= 0."""
    low, high = min(ds), max(ds)
    if low == high:
        return False
    v = {d: value for d, value in zip(ds, values, strict=True)}
    a, rest = divmod(v[high] - v[low], high - low)
    return a > 0 and not rest and all(value == v[low] + a * (d - low) for d, value in zip(ds, values, strict=True))


def windows(own: Tensor, stacked: Tensor, d: int, D: int, name: str) -> list[tuple[Tensor, Tensor]]:
    """Where in a padded tensor a model's own one lies: views of both, in pairs.

    A size a d + b is one of `a` blocks of d, and then b others.

    Raises:
        NotImplementedError: for sizes that are not so.
    """
    pairs = [(own, stacked)]
    for dim in reversed(range(own.dim())):
        small, large = own.shape[dim], stacked.shape[dim]
        if small == large:
            continue
        a, rest = divmod(large - small, D - d)
        b = small - a * d
        if rest or b < 0:
            raise NotImplementedError(f"the sizes of {name} are not proportional to d")
        blocks = [
            (
                u.narrow(dim, 0, a * d).unflatten(dim, (a, d)),
                v.narrow(dim, 0, a * D).unflatten(dim, (a, D)).narrow(dim + 1, 0, d),
            )
            for u, v in pairs
        ]
        pairs = blocks + [(u.narrow(dim, a * d, b), v.narrow(dim, a * D, b)) for u, v in pairs if b]
    return pairs


@contextmanager
def values(model: nn.Module, given: Mapping[tuple[str, str], object]) -> Iterator[None]:
    """For a while, parts of a model have other values: {(part, attribute): value}."""
    parts = [(vars(model.get_submodule(part)), key, value) for (part, key), value in given.items()]
    before = [part[key] for part, key, _ in parts]
    for part, key, value in parts:
        part[key] = value
    try:
        yield
    finally:
        for (part, key, _), value in zip(parts, before, strict=True):
            part[key] = value
