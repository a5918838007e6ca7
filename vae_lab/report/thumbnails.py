"""A run's pictures, small enough that hundreds of runs make one page."""

import base64
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vae_lab.runs.catalogue import Broken
from vae_lab.runs.files import reason

NAMES = ("reconstructions", "samples", "traversals", "manifold", "latent_scatter")
WIDTHS = (560, 400, 280)  # pixels: the largest at which all pictures keep within the budget
QUALITY = 55  # of WebP
GUESS = 0.055  # bytes of a data URI for each pixel of a picture
BATCH = 16  # runs at a time, between two looks at the budget


def thumbnails(folders: Sequence[Path], budget: int) -> tuple[dict[Path, dict[str, str]], list[Broken]]:
    """The pictures of runs as data URIs, by run and name, and the files that are no pictures.

    Args:
        folders: the runs', those first that matter most: the last go without when the budget is spent
        budget: bytes of all data URIs together
    """
    files = {folder: _files(folder) for folder in folders}
    count = sum(map(len, files.values()))
    width = next((w for w in WIDTHS if count * w * w * GUESS <= budget), WIDTHS[-1])
    found: dict[Path, dict[str, str]] = {}
    wrong: list[Broken] = []
    with ThreadPoolExecutor(2) as pool:
        for first in range(0, len(folders), BATCH):
            some = [path for folder in folders[first : first + BATCH] for path in files[folder]]
            for path, uri in zip(some, pool.map(lambda path: _uri(path, width), some), strict=True):
                folder = path.parent.parent
                if isinstance(uri, Exception):
                    wrong.append(Broken(folder, f"pictures/{path.name} is no picture ({reason(uri)}); the run is here"))
                elif (budget := budget - len(uri)) >= 0:
                    found.setdefault(folder, {})[path.stem] = uri
            if budget < 0:
                break
    return found, wrong


def _files(folder: Path) -> list[Path]:
    return [path for name in NAMES if (path := folder / "pictures" / f"{name}.png").is_file()]


def _uri(path: Path, width: int) -> str | Exception:
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.draft("RGB", (width, width))
            small = image.convert("RGB")
            small.thumbnail((width, width), Image.Resampling.BOX, reducing_gap=2.0)
        buffer = io.BytesIO()
        small.save(buffer, "WEBP", quality=QUALITY, method=2)
    except Exception as error:  # a torn file, another format, a picture of a gigapixel
        return error
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
