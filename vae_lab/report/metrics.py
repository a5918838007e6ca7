"""The metrics that tables and charts offer: what they are called, which way they are better, who did best."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vae_lab.report.protocols import Protocol
from vae_lab.report.rows import Row, Rows

LABELS = {
    "elbo": "ELBO",
    "kl": "KL",
    "rec": "reconstruction",
    "active_units": "active units",
    "bits_per_dim": "bits per dimension",
    "log_p": "log p(x)",
    "loss": "loss",
    "images_per_second": "images per second",
    "mutual_information": "I(x; z)",
    "marginal_kl": "KL(q(z) ‖ p(z))",
    "ess": "effective samples",
    "mse": "MSE",
    "psnr": "PSNR",
    "ssim": "SSIM",
}
UNITS = {
    **dict.fromkeys(("active_units", "collapsed"), "units"),
    **dict.fromkeys(("ess", "unconverged", "mse", "ssim"), ""),
    **{"bits_per_dim": "bits", "images_per_second": "1/s", "psnr": "dB"},
}
BETTER = {
    **dict.fromkeys(("elbo", "rec", "log_p", "lower", "psnr", "ssim", "images_per_second"), "max"),
    **dict.fromkeys(("loss", "bits_per_dim", "mse"), "min"),
}
HEADLINES = (
    *("test/elbo", "test/kl", "test/rec", "test/active_units", "test/bits_per_dim"),
    "evaluation/test/importance/log_p",
)
SPLITS = {"test": 0, "evaluation": 1, "val": 2, "train": 3}


def measures(found: Rows) -> list[str]:
    """The metrics that the page offers, the test's first: no totals, no single dimensions, nothing of a single step."""
    shown = (m for m in found.metrics() if "/kl_dim/" not in m and not m.endswith(("_step", "_total", "grad_norm")))
    first = {metric: place - len(HEADLINES) for place, metric in enumerate(HEADLINES)}
    return sorted(shown, key=lambda m: first.get(m, SPLITS.get(m.partition("/")[0], 9)))


def measure(metric: str) -> dict[str, Any]:
    """A metric as the page names it."""
    words = metric.split("/")
    split, name = words[1] if words[0] == "evaluation" else words[0], words[-1]
    label = LABELS.get(name, name.replace("_", " "))
    return {
        "key": metric,
        "label": f"{label} ({words[2]})" if words[0] == "evaluation" else label,
        "split": split,
        "unit": UNITS.get(name, "nats"),
        "better": BETTER.get(name),
        "headline": metric in HEADLINES,
    }


def ranked(rows: Sequence[Row], metric: str | None) -> list[Row]:
    """The runs, those that did best under their protocol first, and those without a number last."""
    sign = -1 if metric is not None and measure(metric)["better"] != "min" else 1
    places: dict[Protocol, list[Row]] = {}
    for row in rows:
        if metric is not None and row.results.get(metric) is not None:
            places.setdefault(row.protocols[metric], []).append(row)
    order: dict[Path, int] = {}
    for some in places.values():
        some.sort(key=lambda row: sign * (row.results[metric] or 0.0))  # type: ignore[index]
        order |= {row.run.folder: place for place, row in enumerate(some)}
    return sorted(rows, key=lambda row: order.get(row.run.folder, len(rows)))
