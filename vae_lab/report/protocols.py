"""How each number was found. Numbers of different protocols are never ranked, averaged or subtracted."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, final

from vae_lab.runs.catalogue import Run, number, short

DENSITIES = {
    "gaussian",
    "gaussian_learned",
    "gaussian_optimal",
    "gaussian_per_pixel",
    "laplace",
    "continuous_bernoulli",
}
PROBABILITIES = {"categorical", "discretised_logistic"}
LEVELS = {"digits": 17, "mnist": 256, "fashion_mnist": 256, "frey_face": 256}
LATENT = ("kl", "active_units", "rate", "mutual_information", "marginal_kl", "collapsed", "images_per_second")
"""What does not say how probable x is, and so does not depend on what p(x | z) measures."""


@final
@dataclass(frozen=True)
class Protocol:
    """All that two numbers must share to be compared, besides what is compared: the run.

    How many samples V an ELBO was estimated with is no part of it: its mean does not depend on V. An estimator's K is.

    Attributes:
        split: train, val or test
        n: how many data; None: unknown
        data: the source
        preprocessing: what x is: its scale, binarisation, dequantisation
        measure: what p(x | z) is: a density, or a probability; None for what does not depend on it
        estimator: what `evaluate` computed, with its samples; None: as the run itself did
        checkpoint: best or last
        objective: of a loss; None for anything else
    """

    split: str
    n: int | None
    data: str
    preprocessing: str
    measure: str | None = None
    estimator: str | None = None
    checkpoint: str = "best"
    objective: str | None = None

    def __str__(self) -> str:
        n = None if self.n is None else f"n = {self.n}"
        weights = None if self.checkpoint == "best" else f"{self.checkpoint} checkpoint"
        words = (f"{self.split} split", n, self.data, self.preprocessing, self.measure, self.estimator, weights)
        return ", ".join(word for word in (*words, self.objective) if word is not None)


def why_not(protocols: Iterable[Protocol]) -> str | None:
    """Why numbers found in these ways are not ranked together, in words; None where they may be.

    "preprocessing differs (pixels / 16; (pixels + u) / 17), n differs (360; 100)"
    """
    facts = [asdict(protocol) for protocol in dict.fromkeys(protocols)]
    if len(facts) < 2:
        return None
    different = {key: list(dict.fromkeys(str(f[key]) for f in facts)) for key in facts[0]}
    return ", ".join(f"{key} differs ({'; '.join(values)})" for key, values in different.items() if len(values) > 1)


def comparable(numbers: Mapping[str, Protocol]) -> None:
    """Raises ValueError, with the reason, unless all of these, by name, may be ranked together."""
    if (why := why_not(numbers.values())) is not None:
        raise ValueError(f"{', '.join(list(numbers)[:2])}{' ...' * (len(numbers) > 2)} cannot be compared: {why}")


def of_run(run: Run, metric: str) -> Protocol:
    """The protocol of a metric that the run itself logged, as `test/elbo`."""
    split, _, name = metric.partition("/")
    results = run.record["results"]
    objective = _objective(run.config) if name.startswith("loss") else None
    checkpoint = "best" if split == "test" else "last"
    n = _n(results.get(f"{split}/elbo_total"), results.get(f"{split}/elbo"))
    return Protocol(split, n, *_data(run.config, name), checkpoint=checkpoint, objective=objective)


def of_evaluation(run: Run, known: Mapping[str, Any], metric: str) -> Protocol:
    """The protocol of a value that `evaluate` found, given what `evaluation.json` says of it."""
    data, preprocessing, measure = _data(run.config, metric)
    estimator, (_, _, elsewhere) = str(known["estimator"]), str(known["data"]).partition(" ")
    samples = "" if estimator == "elbo" else f" {known['samples']}".rstrip()
    return Protocol(
        split=str(known["split"]),
        n=int(known["n"]),
        data=f"{data} {elsewhere}".rstrip(),
        preprocessing=preprocessing,
        measure=None if estimator == "images" else measure,
        estimator=f"{estimator}{samples}",
        checkpoint=str(known["checkpoint"]),
        objective=_objective(run.config) if metric.startswith("loss") else None,
    )


def _n(total: object, mean: object) -> int | None:
    """(17): elbo_total is n times the mean."""
    above, below = number(total), number(mean)
    return round(above / below) if above is not None and below else None


def _data(config: Mapping[str, Any], metric: str) -> tuple[str, str, str | None]:
    """The data, what was done to them, and what p(x | z) measures, in words."""
    name = short(config.get("data", "?"))
    where = f" {config['data.root']}" if name == "arrays" and "data.root" in config else ""
    preprocessing = _preprocessing(config)
    latent = metric.split("/")[0] in LATENT
    return f"{name}{where}", preprocessing, None if latent else _measure(config, preprocessing)


def _preprocessing(config: Mapping[str, Any]) -> str:
    levels, seed = LEVELS.get(short(config.get("data", ""))), config.get("preprocessing.seed", 0)
    drawn = f", seed {seed}" if seed else ""
    match config.get("preprocessing"):
        case "raw":
            return f"pixels / {levels - 1}" if levels else "raw"
        case "dequantised":
            return (f"(pixels + u) / {levels}" if levels else "dequantised") + drawn
        case "binarised_static":
            return f"binarised once by {config.get('preprocessing.method')}{drawn}"
        case "binarised_dynamic":
            return f"binarised afresh{drawn}"
    inside = {key: value for key, value in sorted(config.items()) if key.startswith("preprocessing.")}
    return " ".join([short(config.get("preprocessing", "?")), *(f"{k}={short(v)}" for k, v in inside.items())])


def _measure(config: Mapping[str, Any], preprocessing: str) -> str:
    likelihood = short(config.get("likelihood", "?"))
    if likelihood in DENSITIES:
        return "p(x|z) a density"
    if likelihood in PROBABILITIES or (likelihood == "bernoulli" and preprocessing.startswith("binarised")):
        return "p(x|z) a probability"
    return "p(x|z) a Bernoulli of grey values" if likelihood == "bernoulli" else f"p(x|z) of {likelihood}"


def _objective(config: Mapping[str, Any]) -> str:
    inside = (key for key in sorted(config) if key.startswith("objective.") and key != "objective.V")
    words = (f"{key.partition('.')[2]}={short(config[key])}" for key in inside)
    return " ".join([short(config.get("objective", "?")), *words])
