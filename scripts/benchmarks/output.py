"""What a benchmark found: as Markdown, as JSON and as a picture; all of it also later, from the JSON."""

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.comparison import Comparison, from_json, to_json
from benchmarks.team import ROOF


class Found(NamedTuple):
    """What a benchmark found, and on which machine."""

    benchmark: str
    machine: dict[str, str]
    comparisons: Sequence[Comparison]


def write(found: Found, path: Path) -> None:
    """As JSON, with all segments."""
    content = found._asdict() | {"comparisons": [to_json(c) for c in found.comparisons]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def read(path: Path) -> Found:
    """What `write` has written."""
    content = json.loads(path.read_text())
    return Found(**content | {"comparisons": [from_json(c) for c in content["comparisons"]]})


# --- tables


def markdown(found: Found) -> str:
    """All there is."""
    machine = ", ".join(f"{key} {value}" for key, value in found.machine.items())
    return f"{tables(found.comparisons)}\n\n{machine}.\n"


def tables(comparisons: Sequence[Comparison]) -> str:
    """The tables, and a line for each comparison."""
    plain = [c for c in comparisons if c.about.axis is None]
    parts = [*([figures(plain), goals(plain)] if plain else []), *costs(comparisons), bullets(comparisons)]
    return "\n\n".join(filter(None, parts))


def figures(comparisons: Iterable[Comparison]) -> str:
    """Each contender's median, and its ratio to the first one's."""
    rows = []
    for c in comparisons:
        for name in c.segments:
            loss = f"{sum(c.losses[name]) / len(c.losses[name]):.4g}" if c.losses.get(name) else ""
            ratio = "1" if name == c.reference else str(c.ratio(name, c.reference))
            figure, spread = f"{number(c.median(name))} {c.about.unit}", f"{c.spread(name):.0%}"
            one = f"{number(cost(c, name))} µs" if c.about.unit == "steps/s" else ""
            rows.append((c.about.name, name, figure, one, ratio, spread, loss))
    return table(("workload", "contender", "median", "a step", "over the first (quartiles)", "spread", "loss"), rows)


def goals(comparisons: Iterable[Comparison]) -> str:
    """What was to be reached."""
    rows = []
    for c in comparisons:
        for goal, ratio in c.measured():
            mark, sign = "✓" if goal.met(ratio.median) else "✗", "≤" if goal.most else "≥"
            aim = "" if goal.aim is None else f"{goal.aim:g}"
            rows.append((c.about.name, f"{goal.of} / {goal.to}", f"{ratio} {mark}", f"{sign} {goal.must:g}", aim))
    return table(("workload", "ratio", "measured (quartiles)", "must", "aim"), rows) if rows else ""


def costs(comparisons: Iterable[Comparison]) -> list[str]:
    """For each axis, what a step of one model costs."""
    tables = []
    for axis, points in axes(comparisons).items():
        names = contenders(points)
        rows = [
            (f"{c.about.at:g}", *(number(cost(c, name)) if name in c.segments else "" for name in names), gigaflops(c))
            for c in points
        ]
        tables.append(
            f"Microseconds for a step of one model:\n\n{table((axis, *names, 'GFLOP/s of the products'), rows)}"
        )
    return tables


def axes(comparisons: Iterable[Comparison]) -> dict[str, list[Comparison]]:
    """The points of each axis, in order."""
    found: dict[str, list[Comparison]] = {}
    for c in sorted((c for c in comparisons if c.about.axis), key=lambda c: c.about.at):
        assert c.about.axis is not None
        found.setdefault(c.about.axis, []).append(c)
    return found


def contenders(points: Sequence[Comparison]) -> list[str]:
    """All that take part in any of them."""
    return list(dict.fromkeys(name for c in points for name in c.segments))


def cost(c: Comparison, name: str) -> float:
    """Microseconds for a step of one model."""
    return 1e6 / c.median(name)


def gigaflops(c: Comparison) -> str:
    """How fast the matrix products alone are."""
    return f"{c.median(ROOF) * c.about.flops / 1e9:.0f}" if ROOF in c.segments else ""


def bullets(comparisons: Iterable[Comparison]) -> str:
    """What there is to be said of each: what was compared, what was left out, whether the machine was quiet."""
    lines = []
    for c in comparisons:
        n = len(c.segments[c.reference])
        noise = c.noise
        rest = f"; other processes took {noise.others:.2f} of {noise.cores} cores" if noise else ""
        doubts = c.doubts()
        verdict = f"**not to be trusted: {'; '.join(doubts)}**" if doubts else f"quiet{rest}"
        products = f"; {ROOF}: {gigaflops(c)} GFLOP/s" if ROOF in c.segments else ""
        notes = "".join(f"; {note}" for note in c.about.notes)
        lines.append(f"- {c.about.name}: {c.about.title}; {n} segments{products}{notes}; {verdict}")
    return "\n".join(lines)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def insert(found: Found, page: Path, picture: Path | None) -> None:
    """Puts the tables into a page of Markdown, between `<!-- benchmark NAME -->` and `<!-- end -->`.

    Args:
        picture: to be shown with them
    Raises:
        ValueError: if the page has no such place.
    """
    place = re.compile(rf"(<!-- benchmark {found.benchmark} -->\n).*?(<!-- end -->)", re.DOTALL)
    text = page.read_text()
    if not place.search(text):
        raise ValueError(f"{page} has no place <!-- benchmark {found.benchmark} --> <!-- end -->")
    tables, shown = markdown(found), ""
    if picture is not None:
        shown = f"\n![{found.benchmark}]({os.path.relpath(picture, page.parent)})\n"
    page.write_text(place.sub(lambda at: f"{at[1]}\n{tables}{shown}\n{at[2]}", text))


# --- pictures


def plot(found: Found, path: Path) -> None:
    """Bars of ratios with their quartiles, or where something is varied the cost of a step over it."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    plain = [c for c in found.comparisons if c.about.axis is None]
    varied = list(axes(found.comparisons).items())
    count = len(plain) + len(varied)
    columns = min(count, 3) if varied else 1
    rows = -(-count // columns)
    heights = [3.4] * rows if varied else [0.7 + 0.3 * len(c.segments) for c in plain]
    figure, panels = plt.subplots(
        rows, columns, figsize=(4.4 * columns + 2.6 * (not varied), sum(heights)), squeeze=False,
        height_ratios=heights, layout="constrained",
    )  # fmt: skip
    for panel, c in zip(panels.flat, plain, strict=False):
        bars(panel, c)
    for panel, (axis, points) in zip(panels.flat[len(plain) :], varied, strict=False):
        lines(panel, axis, points)
    for panel in panels.flat[count:]:
        panel.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def bars(panel: Any, c: Comparison) -> None:  # noqa: ANN401
    """Each contender's figure over the first one's."""
    names = [name for name in c.segments if name != c.reference][::-1] or [c.reference]
    for i, name in enumerate(names):
        ratio = c.ratio(name, c.reference)
        panel.barh(i, ratio.median, height=0.6, color="tab:blue" if name.startswith("vae_lab") else "0.7")
        panel.plot([ratio.low, ratio.high], [i, i], color="black", linewidth=1.5)
        panel.annotate(
            f"{ratio.median:.2f}", (ratio.high, i), (4, 0), textcoords="offset points", va="center", fontsize=8
        )
    panel.axvline(1, color="black", linewidth=0.8, linestyle=":")
    panel.set_yticks(range(len(names)), names, fontsize=8)
    panel.set_title(f"{c.about.name}: {c.about.unit} over {c.reference}", fontsize=9, loc="left")
    panel.spines[["top", "right"]].set_visible(False)
    panel.margins(x=0.12)


def lines(panel: Any, axis: str, points: Sequence[Comparison]) -> None:  # noqa: ANN401
    """The cost of a step of one model."""
    for name in contenders(points):
        there = [c for c in points if name in c.segments]
        style = {"color": "black", "linestyle": ":"} if name == ROOF else {"marker": "o", "markersize": 3}
        panel.plot([c.about.at for c in there], [cost(c, name) for c in there], label=name, **style)
    panel.set(xscale="log", yscale="log", xlabel=axis, ylabel="µs for a step of one model")
    ticks = [c.about.at for c in points]
    panel.set_xticks(ticks, [f"{at:g}" for at in ticks])
    panel.minorticks_off()
    panel.legend(fontsize=7, frameon=False)
    panel.spines[["top", "right"]].set_visible(False)
