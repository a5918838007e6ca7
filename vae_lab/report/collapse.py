"""Whether a run's latent units are used, and if not, why: in plain words, beside what the linear oracle predicts."""

from typing import Any, NamedTuple

from vae_lab.report.oracle import Oracles
from vae_lab.report.rows import Row


class Verdict(NamedTuple):
    """A sentence, and how bad it is: good, warn or bad."""

    text: str
    level: str


class Units(NamedTuple):
    """A run's latent units.

    Attributes:
        active: how many have Var_x(E_q[z_j | x]) > 0.01; None: unknown
        predicted: the same of the best linear VAE; None: unknown
        kl: of each dimension, in nats
        verdict: what that means
        aggregate: what is known of q(z) = E_x q(z | x)
    """

    active: int | None
    predicted: int | None
    kl: list[float] | None
    verdict: Verdict | None
    aggregate: str | None


def units(row: Row, oracles: Oracles) -> Units:
    """Of the test data, or where there are none of the validation data."""
    d: Any = row.run.config.get("d")
    observed = next((row.results[m] for m in ("test/active_units", "val/active_units") if m in row.results), None)
    kl = next((found for split in ("test", "val") if (found := kl_dims(row, split))), None)
    if observed is None or not isinstance(d, int):
        return Units(None, None, kl, None, aggregate(row))
    predicted = oracles.active(row.run)
    said = verdict(d, round(observed), predicted)
    return Units(round(observed), predicted, kl, said, aggregate(row))


def verdict(d: int, active: int, predicted: int | None) -> Verdict:
    """Of a run with `active` of d units, where the linear oracle has `predicted` (None: it says nothing)."""
    inactive = d - active
    oracle_says = "" if predicted is None else f"the linear oracle predicts {d - predicted}"
    if inactive == 0:
        units = "the only unit is" if d == 1 else f"all {d} units are"
        return Verdict(f"{units} active" + (f"; {oracle_says} inactive" if predicted is not None else ""), "good")
    text = f"{inactive} of {d} units inactive"
    level = "bad" if active == 0 else "warn"
    if predicted is None:
        return Verdict(text, level)
    if 2 * (d - predicted) >= inactive:  # most of them carry nothing that s2 would not drown
        return Verdict(f"{text}: s2 is too large for these data; {oracle_says}", level)
    cause = "s2 alone does not explain it; train longer, or warm the KL up (objective.warmup)"
    return Verdict(f"{text}: {cause}; {oracle_says}", "bad" if 2 * inactive > d else "warn")


def kl_dims(row: Row, split: str) -> list[float] | None:
    """The KL of each latent dimension, in nats."""
    prefix = f"{split}/kl_dim/"
    found = {name.removeprefix(prefix): value for name, value in row.results.items() if name.startswith(prefix)}
    values = [value for _, value in sorted(found.items()) if value is not None]
    return values if values and len(values) == len(found) else None


def aggregate(row: Row) -> str | None:
    """How far q(z) is from p(z), where `evaluate` has found out (`evaluation.estimators=[information]`)."""
    for split in ("test", "val", "train"):
        prefix = f"evaluation/{split}/information"
        values = [
            row.results.get(f"{prefix}/{name}") for name in ("marginal_kl", "mutual_information", "rate", "log_n")
        ]
        if None not in values:
            marginal, mutual, rate, log_n = values
            return (
                f"{split} split: KL(q(z) ‖ p(z)) = {marginal:.2f} nats of a rate of {rate:.2f}; "
                f"I(x; z) = {mutual:.2f} nats, of which these data can show {log_n:.2f}"
            )
    return None
