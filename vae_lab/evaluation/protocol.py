"""Under which protocol a number was found; numbers of different protocols are not put side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import final


@final
@dataclass(frozen=True)
class Protocol:
    """All that two numbers must share to be compared, besides what is compared: the run.

    Attributes:
        estimator: what was computed, and how
        data: the source of the data
        preprocessing: what was done to them
        split: train, val or test
        n: how many data
        samples: of each datum, by name, as "V=1" or "temperatures=500 chains=16"
        checkpoint: best or last
        seed: of the noise
    """

    estimator: str
    data: str
    preprocessing: str
    split: str
    n: int
    samples: str
    checkpoint: str
    seed: int


@final
@dataclass(frozen=True)
class Score:
    """A number, its standard error where it has one, and how it was found."""

    value: float
    error: float | None
    protocol: Protocol

    def __str__(self) -> str:
        return f"{self.value:.3f}" + ("" if self.error is None else f" ± {self.error:.3f}")


def comparable(scores: Mapping[str, Score]) -> Protocol:
    """The protocol that all scores share.

    Raises:
        ValueError: if they share none, naming the first field in which two of them differ, and its two values.
    """
    if not scores:
        raise ValueError("scores must hold at least one, got none")
    (first, score), *others = scores.items()
    for name, other in others:
        for field in fields(Protocol):
            a, b = getattr(score.protocol, field.name), getattr(other.protocol, field.name)
            if a != b:
                raise ValueError(f"{field.name} must be the same to compare: {a!r} for {first}, {b!r} for {name}")
    return score.protocol


def tabulate(table: Mapping[str, Mapping[str, Score]]) -> list[list[str]]:
    """Rows of text: a header, then each row's name and its scores; each column's scores are of one protocol.

    Args:
        table: row (a run, say) -> column (a measure) -> score
    Raises:
        ValueError: if a column mixes protocols (see `comparable`).
    """
    columns: Sequence[str] = list(dict.fromkeys(name for row in table.values() for name in row))
    for column in columns:
        comparable({name: row[column] for name, row in table.items() if column in row})
    return [["", *columns], *([name, *(str(row.get(c, "")) for c in columns)] for name, row in table.items())]
