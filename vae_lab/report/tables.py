"""The table of a paper: what differs and what was reached, as Markdown or LaTeX."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from vae_lab.report.metrics import HEADLINES, measure, ranked
from vae_lab.report.protocols import Protocol, why_not
from vae_lab.report.rows import Row, Rows
from vae_lab.report.statistics import SEED, Mean, mean
from vae_lab.runs.catalogue import short

TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}


Protocols = tuple[Protocol | None, ...]  # of each metric


class Table(NamedTuple):
    """A table of texts, of which the first `names` columns say what was run; the notes stand below it."""

    header: list[str]
    body: list[list[str]]
    names: int
    notes: list[str]


def table(found: Rows, y: str | None = None, each: bool = False) -> Table:
    """The finished runs, the best first: mean ± standard error over seeds of the headline metrics, or of `y` alone.

    Numbers of different protocols are never averaged: each has a row of its own, and a note says in what they differ.

    Args:
        each: a row for each run, with the standard error over the data
    """
    rows = [row for row in found.rows if row.run.facts["state"] == "finished"]
    metrics = [y] if y is not None else [m for m in HEADLINES if m in found.metrics()] or found.metrics()[:1]
    keys = [key for key in found.axes() if each or key != SEED]
    cells: dict[tuple[tuple[str, ...], Protocols, str], list[Row]] = {}
    for row in ranked(rows, metrics[0] if metrics else None):
        setting = tuple(short(row.run.config.get(key, "")) for key in keys)
        how = tuple(row.protocols.get(metric) for metric in metrics)
        cells.setdefault((setting, how, row.run.folder.name if each else ""), []).append(row)
    hows = list(dict.fromkeys(how for _, how, _ in cells))
    order = sorted(cells.items(), key=lambda cell: (hows.index(cell[0][1]), _place(cell[1], metrics)))
    several = len(hows) > 1
    header = [*keys, *["protocol"] * several, *(_head(metric) for metric in metrics), "run" if each else "seeds"]
    body = []
    for (setting, how, name), some in order:
        scores = [_score(some, metric, each) for metric in metrics]
        body.append([*setting, *[_letter(hows.index(how))] * several, *scores, name if each else str(len(some))])
    return Table(header, body, len(keys) + several, _notes(metrics, hows, each))


def markdown(found: Table) -> str:
    """A table of GitHub's Markdown."""
    align = ["---"] * found.names + ["---:"] * (len(found.header) - found.names)
    lines = [[escape_md(cell) for cell in line] for line in (found.header, *found.body)]
    rows = [lines[0], align, *lines[1:]]
    return "\n".join([*("| " + " | ".join(line) + " |" for line in rows), "", *map(escape_md, found.notes), ""])


def latex(found: Table) -> str:
    """A `tabular` for the package booktabs."""
    columns = "l" * found.names + "r" * (len(found.header) - found.names)
    header, *body = [" & ".join(map(escape_tex, line)) + r" \\" for line in (found.header, *found.body)]
    notes = [f"% {' '.join(note.split())}" for note in found.notes]
    rules = [f"\\begin{{tabular}}{{{columns}}}", r"\toprule", header, r"\midrule", *body, r"\bottomrule"]
    return "\n".join([r"% \usepackage{booktabs}", *notes, *rules, r"\end{tabular}", ""])


def escape_md(text: str) -> str:
    """Any text as one line that Markdown shows as it is, in a cell of a table too."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", text)


def escape_tex(text: str) -> str:
    """Any text as one line that LaTeX shows as it is."""
    found = "".join(TEX.get(c, c) for c in " ".join(text.split()))
    return found.replace("±", r"$\pm$").replace("×", r"$\times$").replace("‖", r"$\Vert$")


def _head(metric: str) -> str:
    known = measure(metric)
    return known["label"] + ("" if known["split"] == "test" else f" ({known['split']})")


def _score(some: Sequence[Row], metric: str, each: bool) -> str:
    values = [value for row in some if (value := row.results.get(metric)) is not None]
    if not values:
        return ""
    found = mean(values) if not each else Mean(values[0], some[0].errors.get(metric), 1)
    n = f" (n = {found.n})" if not each and found.n != len(some) else ""
    return f"{found.mean:.3f}" + (f" ± {found.error:.3f}" if found.error is not None else "") + n


def _place(some: Sequence[Row], metrics: Sequence[str]) -> float:
    """Where a cell stands: the best first, those without a number last."""
    values = [value for row in some if metrics and (value := row.results.get(metrics[0])) is not None]
    if not values:
        return float("inf")
    return mean(values).mean * (1 if measure(metrics[0])["better"] == "min" else -1)


def _notes(metrics: Sequence[str], hows: Sequence[Protocols], each: bool) -> list[str]:
    notes = ["± is the standard error over the data." if each else "± is the standard error over seeds."]
    for i, how in enumerate(hows):
        full = {replace(p, measure=None) for p in how if p is not None and p.measure is not None}
        known = dict.fromkeys(str(p) for p in how if p is not None and p not in full)
        if known:
            notes.append(f"{_letter(i)}: " * (len(hows) > 1) + f"{'; '.join(known)}.")
    for j, metric in enumerate(metrics):
        if (why := why_not(how[j] for how in hows if how[j] is not None)) is not None:  # type: ignore[misc]
            notes.append(f"{_head(metric)}: not ranked together, as {why}.")
    return notes


def _letter(i: int) -> str:
    return chr(ord("a") + i) if i < 26 else str(i)
