"""Figures that explain: a model as the note's Figure 1, and why draws from the prior (1) do not suffice.

Each function returns a matplotlib figure; files are its caller's affair.
"""

from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from torch import nn

from vae_lab.interfaces import Decoder, Encoder, Likelihood, Posterior
from vae_lab.objectives import Objective
from vae_lab.vae import VAE

INK, FAINT, RULE = "#333333", "#777777", "#c8c8c8"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titlepad": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.fonttype": "none",
}
DPI = 144


def naive_mc(rows: Sequence[dict[str, Any]], m: int, title: str) -> Figure:
    """Beside each other, over d: the draws that an error of one nat needs, and the error of m draws.

    Args:
        rows: for each d: `cv2` and `cv2_quartiles` over data, `expected` and `measured` errors
    """
    d = [row["d"] for row in rows]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 3.6), dpi=DPI)
        FigureCanvasAgg(figure)
        figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.08, wspace=0.06)
        figure.suptitle(title, x=0.012, ha="left", fontsize=11)
        left, right = figure.subplots(1, 2)

        low, high = zip(*(row["cv2_quartiles"] for row in rows), strict=True)
        left.fill_between(d, low, high, color="C0", alpha=0.2, linewidth=0)
        left.plot(d, [row["cv2"] for row in rows], "o-", color="C0", label="median of the data, and quartiles")
        guide = [rows[0]["cv2"] * 10.0 ** (k - d[0]) for k in d]
        left.plot(d, guide, "--", color=FAINT, linewidth=1, label="ten times for each dimension")
        left.set(title="Draws for an error of one nat: $CV^2$", xlabel="$d$", yscale="log", xticks=d)
        left.legend(frameon=False, loc="upper left")

        right.plot(
            d, [row["expected"] for row in rows], "--", color=FAINT, linewidth=1, label="$CV / \\sqrt{m}$, exact"
        )
        right.plot(d, [row["measured"] for row in rows], "o-", color="C3", label="measured")
        right.set(title=f"Error of log p(x) by m = {m:,} draws, in nats", xlabel="$d$", yscale="log", xticks=d)
        top = max(row["measured"] for row in rows)
        right.set_ylim(top=5 * top)  # what is expected of draws that do not suffice means nothing
        right.legend(frameon=False, loc="upper left")
    return figure


def schematic(vae: VAE, objective: Objective) -> Figure:
    """A model as the note's Figure 1: x -> q(z | x), z = mu + sigma * eps, f, and the two terms that are summed."""
    x = list(vae.shape)
    eta = x if vae.decoder.outputs == 1 else [vae.decoder.outputs, *x]
    q = getattr(vae.encoder, "posterior", None)
    names, sample = KINDS.get(type(q).__name__ if q is not None else "Diagonal", ("numbers of q", "z = T(\\epsilon)"))
    p_x, amortised = type(vae.likelihood).__name__, vae.encoder.amortised
    label = f", label of {vae.encoder.classes}" if vae.encoder.classes else ""
    K = type(objective).__name__ == "Iwae"
    samples = f"{'K' if K else 'V'} = {objective.samples}"
    rec, under = reconstruction(vae.likelihood)
    loss = f"Iwae, inside the log of K = {objective.samples}" if K else f"{type(objective).__name__}: the sum"
    if type(objective).__name__ == "NoteEq20":
        rec, under = "$\\|x - f(z)\\|^2$", "(20) as printed: no $1 / 2s^2$"

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(13.0, 4.6), dpi=DPI)
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 13.0), ylim=(0, 4.6))
        axes.axis("off")

        def box(x: float, y: float, width: float, lines: Sequence[str], colour: str) -> None:
            patch = FancyBboxPatch(
                (x - width / 2, y - 0.45), width, 0.9, boxstyle="round,pad=0,rounding_size=0.1", lw=1.1,
                facecolor=colour, edgecolor=INK,
            )  # fmt: skip
            axes.add_patch(patch)
            first, *rest = lines
            axes.text(x, y + 0.17 * len(rest), first, ha="center", va="center", fontsize=11)
            for i, line in enumerate(rest):
                axes.text(
                    x, y - 0.17 - 0.22 * i + 0.02 * len(rest), line, ha="center", va="center", fontsize=7.5, color=FAINT
                )

        def arrow(start: tuple[float, float], end: tuple[float, float], bend: float = 0.0) -> None:
            style = f"arc3,rad={bend}"
            axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, lw=1.1, color=INK,
                                           shrinkA=0, shrinkB=0, connectionstyle=style))  # fmt: skip

        top, low = 3.0, 1.05
        box(0.95, top, 1.3, ["$x$", f"{x}{label}" if amortised else "known by index"], DATA)
        box(3.05, top, 1.9, ["encoder", kind(vae.encoder)], NETWORK)
        box(5.35, top, 1.7, [f"${names}$", f"d = {vae.d}"], NUMBERS)
        box(7.65, top, 1.9, [f"${sample}$", f"{samples}, d = {vae.d}"], NUMBERS)
        box(9.9, top, 1.6, ["decoder $f$", kind(vae.decoder)], NETWORK)
        box(12.0, top, 1.3, ["$f(z)$", str(eta)], DATA)
        for start, end in ((1.6, 2.1), (4.0, 4.5), (6.2, 6.7), (8.6, 9.1), (10.7, 11.35)):
            arrow((start, top), (end, top))
        axes.text(7.65, 4.25, "$\\epsilon \\sim N(0, I)$", ha="center", va="center", fontsize=11)
        arrow((7.65, 4.07), (7.65, top + 0.45))

        box(5.35, low, 2.5, ["$KL(q(z | x) \\, \\| \\, p(z))$", f"p(z): {type(vae.prior).__name__}"], TERM)
        box(11.4, low, 2.5, [rec, f"{p_x}{', ' if under else ''}{under}"], TERM)
        box(8.45, low, 1.7, ["loss", loss], NUMBERS)
        arrow((5.35, top - 0.45), (5.35, low + 0.45))
        arrow((12.0, top - 0.45), (12.0, low + 0.45))
        arrow((6.6, low), (7.6, low))
        arrow((10.15, low), (9.3, low))
        # x itself is what f(z) is held against
        axes.plot(
            [0.95, 0.95, 11.1, 11.1], [top - 0.45, 0.2, 0.2, low - 0.62], color=INK, lw=1.1, solid_joinstyle="round"
        )
        arrow((11.1, 0.2), (11.1, low - 0.45))
    return figure


DATA, NETWORK, NUMBERS, TERM = "#f3f3f3", "#dbe9f6", "#fdf3d8", "#f8dcd4"
KINDS = {
    "Diagonal": ("\\mu, \\ \\sigma", "z = \\mu + \\sigma \\odot \\epsilon"),
    "Full": ("\\mu, \\ L", "z = \\mu + L \\epsilon"),
    "Flow": ("\\mu, \\ \\sigma, \\ h", "z = \\mu + \\sigma \\odot T_h^{-1}(\\epsilon)"),
}
"""What each posterior is made of, and how noise becomes a sample of it."""


def kind(part: Encoder | Decoder) -> str:
    """A class and what its layers are: `MLP 784-500-40`."""
    layers = [m for m in part.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)]
    own = [
        m
        for m in layers
        if not any(m in list(child.modules()) for child in part.children() if isinstance(child, Posterior))
    ]
    widths = [str(m.in_features if isinstance(m, nn.Linear) else m.in_channels) for m in own[:1]]
    widths += [str(m.out_features if isinstance(m, nn.Linear) else m.out_channels) for m in own]
    shown = widths if len(widths) <= 6 else [*widths[:2], "...", *widths[-2:]]
    return f"{type(part).__name__} {'-'.join(shown)}".strip()


def reconstruction(likelihood: Likelihood) -> tuple[str, str]:
    """The term of a likelihood, and its constant."""
    name, s2 = type(likelihood).__name__, getattr(likelihood, "s2", None)
    if name == "Gaussian":
        return "$\\|x - f(z)\\|^2 / \\, 2s^2$", f"s2 = {s2:g}"
    return "$-\\log p(x | z)$", "s2 at its best" if name == "GaussianOptimal" else ""
