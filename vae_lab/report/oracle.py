"""What the best linear VAE of a run's own training data would do: probabilistic PCA, made once for the same data."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, final

from vae_lab.report.protocols import of_run
from vae_lab.report.rows import Row
from vae_lab.runs.catalogue import Run, number, short
from vae_lab.runs.files import reason

if TYPE_CHECKING:
    from vae_lab.oracles import PPCA

LARGEST = 2048  # values of a datum: the covariance takes their square of memory, and its eigenvalues their cube of time
POINTS = 80  # of the curve


class Curve(NamedTuple):
    """Water-filling: the least rate at each distortion of a Gaussian source with the data's covariance.

    Attributes:
        s2: the water levels, descending
        rate: nats per datapoint
        distortion: E||x - f(z)||^2, in squared units of x
        rec: nats, -E log N(x | f(z), s2 I)
        active: how many latent dimensions are used
    """

    s2: list[float]
    rate: list[float]
    distortion: list[float]
    rec: list[float]
    active: list[int]


@final
class Oracles:
    """Probabilistic PCA of each distinct training data among runs; it is computed when it is first asked for.

    `notes`: for the data that could not be had, by their label, why.
    """

    def __init__(self) -> None:
        self.notes: dict[str, str] = {}
        self._known: dict[str, PPCA | None] = {}

    def of(self, run: Run) -> "PPCA | None":
        """Of the run's training data, as its preprocessing makes them; None where they cannot be had."""
        key = label(run)
        if key not in self._known:
            try:
                self._known[key] = _ppca(run.folder)
            except Exception as error:  # a data file may be broken in any way; the report goes on without it
                self._known[key] = None
                self.notes[key] = reason(error)
        return self._known[key]

    def active(self, run: Run) -> int | None:
        """How many latent units the linear oracle has active; None where it says nothing about this run."""
        if refusal(run) is not None or (ppca := self.of(run)) is None:
            return None
        return ppca.active_units(int(run.config["d"]), water(run))


def label(run: Run) -> str:
    """The data that a run was trained on, as its model saw them."""
    known = of_run(run._replace(record={"results": {}}), "train/kl")
    sizes = (
        f"{key}={short(run.config[f'data.{key}'])}" for key in ("validation", "test") if f"data.{key}" in run.config
    )
    return ", ".join([known.data, known.preprocessing, *sizes])


def refusal(run: Run) -> str | None:
    """Why probabilistic PCA is no model of this run's optimum, were it linear; None if it is."""
    config = run.config
    if config.get("likelihood") != "gaussian":
        return "the linear oracle needs likelihood=gaussian"
    if config.get("prior") != "standard_normal" or config.get("classes"):
        return "the linear oracle needs prior=standard_normal and classes=0"
    if config.get("objective") not in ("elbo", "iwae") or config.get("objective.free_bits"):
        return "the linear oracle needs an objective that is a bound of log p(x)"
    s2, beta, d = (number(config.get(key)) for key in ("likelihood.s2", "objective.beta", "d"))
    if not (s2 and s2 > 0 and (beta or 1.0) > 0 and isinstance(d, int) and d > 0):
        return "its s2, d or beta is no positive number"
    return None


def water(run: Run) -> float:
    """The variance at which the run's objective weighs rate against distortion: D / (2 s2) + beta R has the minimum of
    D / (2 beta s2) + R, so beta s2."""
    return float(run.config["likelihood.s2"]) * float(run.config.get("objective.beta", 1.0))


def curve(ppca: "PPCA", least: float) -> Curve:
    """Water-filling from the largest eigenvalue, where nothing is coded, down to the level `least`."""
    D, top = len(ppca.mean), ppca.eigenvalues[0].item()
    if top <= 0:
        raise ValueError("the data do not vary")
    low = min(least, top / 10)
    s2 = [top * (low / top) ** (i / (POINTS - 1)) for i in range(POINTS)]
    rate, distortion = ([f(D, v) for v in s2] for f in (ppca.rate, ppca.distortion))
    rec = [squared / (2 * v) + D / 2 * math.log(2 * math.pi * v) for squared, v in zip(distortion, s2, strict=True)]
    return Curve(s2, rate, distortion, rec, [ppca.k(D, v) for v in s2])


def distortion(row: Row) -> float | None:
    """E||x - f(z)||^2 of a run's test data, from its reconstruction term; None but for a Gaussian of fixed s2.

    (8)  rec = -distortion / (2 s2) - D/2 log(2 pi s2)
    """
    config = row.run.config
    rec, s2, shape = row.results.get("test/rec"), number(config.get("likelihood.s2")), config.get("likelihood.shape")
    if rec is None or config.get("likelihood") != "gaussian" or not s2 or s2 < 0:
        return None
    if not isinstance(shape, list) or not all(isinstance(size, int) for size in shape):
        return None
    if config.get("objective") == "note_eq20":  # whose rec has no s2
        return None
    return 2 * s2 * (-rec - math.prod(shape) / 2 * math.log(2 * math.pi * s2))


def groups(rows: Sequence[Row]) -> Mapping[str, list[Row]]:
    """The runs of each distinct data, by label."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(label(row.run), []).append(row)
    return found


def _ppca(folder: Path) -> "PPCA":
    """Of a run's training data, wherever they are now; nothing is downloaded.

    Raises:
        ValueError: if they are not there, or too large.
    """
    from vae_lab.data.preprocessing import prepared
    from vae_lab.oracles import PPCA
    from vae_lab.runs.folder import load_data

    source, preprocessing, _, _ = load_data(folder)
    if (D := math.prod(source.shape)) > LARGEST:
        raise ValueError(f"{D} values a datum are too many for probabilistic PCA here: {LARGEST} at most")
    files: Any = getattr(source, "files", None)  # those that would be fetched
    if files is not None and files.root is None:
        for name in files.dataset.sha256:
            if not (files.cache / name).exists():
                raise ValueError(f"{files.cache / name} is not there, and a report downloads nothing")
    train = source.load().train.x
    return PPCA.of(prepared(train, source.levels, preprocessing, "train"))
