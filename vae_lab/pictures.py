"""Pictures of a VAE: what it reconstructs, what it imagines, where it puts the data.

Each function returns a matplotlib figure; files and loggers are its caller's affair. A grid is one image, drawn pixel
for pixel: 8x8 digits stay crisp, and hundreds of tiles cost no more than one.
"""

from collections.abc import Iterable, Sequence
from typing import Any, final

import matplotlib
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from torch import Generator, Tensor

from vae_lab.distributions import centre
from vae_lab.interfaces import Batch
from vae_lab.vae import VAE

Limits = tuple[float, float]
"""The values drawn as black and as white."""

DPI = 144  # a point is two pixels
SIDE = 1160  # pixels that a grid's tiles may fill, each way
TILE = 180  # pixels, the longest side of one tile
MARGIN = 24  # pixels
INK, RULE, PAPER = "#333333", "#c8c8c8", 0.96
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.titlesize": 11,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


@torch.no_grad()
def reconstructions(vae: VAE, batch: Batch, n: int = 10) -> Figure:
    """The first n data, above the means of p(x | z) at z = the mean of q(z | x), or its `centre`."""
    some = _first(vae, batch, n)
    means = vae.p_x(centre(vae.encoder(some)), some.label).mean
    return _grid(torch.stack([some.x, means]), "Reconstructions", limits_of(batch.x), ["$x$", r"$\hat{x}$"])


@torch.no_grad()
def samples(vae: VAE, n: int = 64, generator: Generator | None = None, limits: Limits = (0.0, 1.0)) -> Figure:
    """The means of p(x | z) at n draws of z from the prior."""
    eps = torch.randn(n, vae.d, generator=generator)  # on the CPU: the same draws whatever the model's device
    columns = min(c for c in range(1, n + 1) if n % c == 0 and c * c >= n)
    return _grid(vae.sample(eps.to(_weight(vae))).unflatten(0, (-1, columns)), "Samples from the prior", limits)


@torch.no_grad()
def class_samples(
    vae: VAE, labels: Sequence[int], n: int = 10, generator: Generator | None = None, limits: Limits = (0.0, 1.0)
) -> Figure:
    """The means of p(x | z, label) at n draws of z from the prior: a row for each label, with the same z in each row.

    For a conditional model.
    """
    eps = torch.randn(n, vae.d, generator=generator).to(_weight(vae))
    rows = [vae.sample(eps, torch.full((n,), label, device=eps.device)) for label in labels]
    return _grid(torch.stack(rows), "Samples from the prior, one class a row", limits, [str(k) for k in labels])


@torch.no_grad()
def traversals(vae: VAE, batch: Batch, steps: int = 9, span: float = 3.0, most: int = 10) -> Figure:
    """The means of p(x | z) as one z_j goes from -span to span, the rest of z at the first datum's posterior mean.

    One row per latent dimension, counted from 0: the `most` whose posterior mean varies most over the batch, in that
    order.
    """
    some = _first(vae, batch, len(batch.x))
    mu, label = centre(vae.encoder(some)), None if some.label is None else some.label[0]  # [B, d], []
    chosen = mu.var(0, correction=0).argsort(descending=True, stable=True)[:most].tolist()
    values = torch.linspace(-span, span, steps)
    z = mu[0].repeat(len(chosen), steps, 1)  # [rows, steps, d]
    for row, j in enumerate(chosen):
        z[row, :, j] = values
    rows, columns = [f"$z_{{{j}}}$" for j in chosen], [_number(value) for value in values.tolist()]
    title = f"One latent dimension at a time{_of_class(vae, label)}"
    return _grid(vae.p_x(z, label).mean, title, limits_of(batch.x), rows, columns)


@torch.no_grad()
def manifold(vae: VAE, n: int = 20, limits: Limits = (0.0, 1.0), label: int | None = None) -> Figure:
    """The means of p(x | z) on the latent plane, z at the Gaussian quantiles of an even grid: KW13, fig. 4. For d = 2.

    z_0 grows to the right and z_1 upwards, as in `latent_scatter`. A conditional model has such a plane for each
    `label`.
    """
    _check_plane(vae)
    quantiles = torch.special.ndtri((torch.arange(n) + 0.5) / n)
    z1, z0 = torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij")
    z = torch.stack([z0, z1], -1).to(_weight(vae))
    of = None if label is None else torch.tensor(label, device=z.device)
    means = vae.p_x(z, of).mean
    named = {0, n // 4, n - 1 - n // 4, n - 1}
    names = [_number(q) if i in named else "" for i, q in enumerate(quantiles.tolist())]
    title = f"The latent plane at Gaussian quantiles{_of_class(vae, of)}: $z_0$ to the right, $z_1$ upwards"
    return _grid(means, title, limits, names[::-1], names, gap=2)


@torch.no_grad()
def latent_scatter(vae: VAE, batches: Iterable[Batch], most: int = 3000) -> Figure:
    """The posterior means of the first `most` data, coloured by label; rings at 1 and 2 sigma of N(0, I). For d = 2."""
    _check_plane(vae)
    mus, labels = [], []
    for batch in batches:
        some = _first(vae, batch, most)
        mus.append(centre(vae.encoder(some)).float().cpu())
        labels.append(torch.zeros(len(some.x), dtype=torch.long) if some.label is None else some.label.cpu())
        most -= len(some.x)
        if most == 0:
            break
    mu, (classes, label) = torch.cat(mus), torch.cat(labels).unique(return_inverse=True)
    n = len(classes)
    few = n <= 20
    colours = matplotlib.colormaps["tab10" if n <= 10 else "tab20" if few else "viridis"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1000 / DPI, 900 / DPI), dpi=DPI)
        FigureCanvasAgg(figure)
        figure.set_layout_engine("constrained", w_pad=MARGIN / DPI, h_pad=MARGIN / DPI)
        axes = figure.add_subplot(aspect="equal", title="Posterior means", xlabel="$z_0$", ylabel="$z_1$")
        axes.spines[:].set_visible(False)
        for sigma in (1, 2):
            axes.add_patch(Circle((0, 0), sigma, fill=False, edgecolor=RULE, linewidth=0.8, zorder=0))
        shade = colours((label if few else label / (n - 1)).numpy())
        axes.scatter(mu[:, 0], mu[:, 1], s=9, c=shade, alpha=0.8, linewidths=0)
        if not few:
            figure.colorbar(ScalarMappable(Normalize(classes[0], classes[-1]), colours), ax=axes, shrink=0.6)
        elif n > 1:
            dots = [Line2D([], [], linestyle="", marker="o", markersize=5, color=colours(i)) for i in range(n)]
            names = [str(c) for c in classes.tolist()]
            axes.legend(dots, names, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, handletextpad=0)
    return figure


def limits_of(x: Tensor) -> Limits:
    """What to draw as black and as white: 0 and 1 where all of x lies between them, else the extremes of x."""
    low, high = x.min().item(), x.max().item()
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)


def _grid(
    cells: Float[Tensor, "R C *shape"],
    title: str,
    limits: Limits,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    gap: int = 4,
) -> Figure:
    """R x C data as one picture, `gap` pixels apart, with names beside the rows and below the columns."""
    low, high = limits
    cells = ((cells.float().cpu() - low) / ((high - low) or 1.0)).clamp(0, 1)
    are_images = cells.ndim in (4, 5)
    tiles = _image_tiles(cells) if are_images else torch.full((*cells.shape[:2], 2, 3, 3), PAPER)
    R, C, H, W, _ = tiles.shape
    scale = max(1, min((SIDE - C * gap) // (C * W), (SIDE - R * gap) // (R * H), TILE // max(H, W)))
    tiles = (255 * tiles).byte().repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    h, w = scale * H + gap, scale * W + gap
    canvas = F.pad(tiles, (0, 1, 0, gap, 0, gap), value=255).transpose(1, 2).reshape(R * h, C * w, 4)
    canvas = canvas[: R * h - gap, : C * w - gap]

    with matplotlib.rc_context(STYLE):
        axes = _axes(canvas.shape[1], canvas.shape[0], 52 * bool(rows), 24 * bool(columns))
        axes.add_artist(Tiles(canvas))
        axes.set(title=title, xlim=(0, canvas.shape[1]), ylim=(canvas.shape[0], 0))
        axes.set_yticks([(r + 0.5) * h - gap / 2 for r in range(len(rows))], rows)
        axes.set_xticks([(c + 0.5) * w - gap / 2 for c in range(len(columns))], columns)
        if not are_images:
            axes.add_collection(_lines(cells.flatten(2), h, w, gap), autolim=False)
    assert isinstance(axes.figure, Figure)
    return axes.figure


@final
class Tiles(Artist):
    """An image that is drawn pixel for pixel, where its axes are: resampling it takes ten times as long."""

    def __init__(self, pixels: UInt8[Tensor, "h w 4"]) -> None:
        super().__init__()
        self.pixels = pixels

    def draw(self, renderer: RendererBase) -> None:
        """Matplotlib calls this. In other sizes than its own each pixel is the nearest one."""
        assert self.axes is not None
        box, pixels = self.axes.bbox, self.pixels.flip(0)
        for dim, size in enumerate((box.height, box.width)):
            there, wanted = pixels.shape[dim], round(size * renderer.get_image_magnification())
            if wanted != there:
                pixels = pixels.index_select(dim, torch.arange(wanted) * there // wanted)
        context = renderer.new_gc()
        renderer.draw_image(context, box.x0, box.y0, pixels.numpy())
        context.restore()


def _image_tiles(cells: Tensor) -> Float[Tensor, "R C H W 3"]:
    """Images as RGB: three channels are colours; of any other number the first is drawn, in grey."""
    images = cells.unsqueeze(2) if cells.ndim == 4 else cells  # [R, C, channels, H, W]
    return (images if images.shape[2] == 3 else images[:, :, :1].expand(-1, -1, 3, -1, -1)).movedim(2, -1)


def _lines(cells: Float[Tensor, "R C D"], h: int, w: int, gap: int) -> LineCollection:
    """Vectors as one line per tile; a single number is a level one."""
    cells = cells.expand(-1, -1, 2) if cells.shape[2] == 1 else cells
    R, C, D = cells.shape
    x = torch.linspace(0.06, 0.94, D) * (w - gap) + w * torch.arange(C)[:, None]  # [C, D]
    y = (0.9 - 0.8 * cells) * (h - gap) + h * torch.arange(R)[:, None, None]  # [R, C, D], downwards
    return LineCollection(list(torch.stack([x.expand_as(y), y], -1).flatten(0, 1).numpy()), colors=INK, linewidths=0.8)


def _axes(width: int, height: int, left: int, bottom: int) -> Axes:
    """The axes of a new figure, `width` by `height` pixels exactly, with room for a title and for names beside them."""
    left, bottom, top = MARGIN + left, MARGIN + bottom, MARGIN + 36
    full_width, full_height = left + width + MARGIN, bottom + height + top
    figure = Figure(figsize=(full_width / DPI, full_height / DPI), dpi=DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((left / full_width, bottom / full_height, width / full_width, height / full_height))
    axes.spines[:].set_visible(False)
    return axes


def _number(value: float) -> str:
    """At most two decimals, with a true minus sign."""
    return f"{round(value, 2):g}".replace("-", "\u2212")


def _weight(vae: VAE) -> Tensor:
    """One of the model's parameters, to learn its device and dtype from."""
    return next(vae.parameters())


def _first(vae: VAE, batch: Batch, n: int) -> Batch:
    """The first n data, where the model is."""
    weight = _weight(vae)
    label = None if batch.label is None else batch.label[:n].to(weight.device)
    return Batch(batch.x[:n].to(weight), batch.index[:n].to(weight.device), label)


def _of_class(vae: VAE, label: Tensor | None) -> str:
    """What a title says of the one label of a conditional model's picture."""
    return f", class {int(label)}" if vae.decoder.classes and label is not None else ""


def _check_plane(vae: VAE) -> None:
    if vae.d != 2:
        raise ValueError(f"the latent plane can be drawn for d = 2, got d = {vae.d}")
