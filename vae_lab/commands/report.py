"""`vae-lab report outputs/`: many runs as one page that opens anywhere, or as a table. Only its oracle needs torch."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from vae_lab import hints
from vae_lab.checks import closest, one_of
from vae_lab.commands.tables import paths_list, shown
from vae_lab.report.rows import Rows, collect

FORMATS = ("html", "csv", "parquet", "md", "tex")


def main(words: Sequence[str]) -> int:
    """Does `report`, whose words are a folder and the keys of `conf/report.yaml`, and returns the exit status.

    Raises:
        ValueError: for a word that makes no sense, a folder that is not there, a key or metric that no run has.
    """
    if {"--help", "-h"} & set(words):
        print(usage())
        return 0
    given = options(words)
    kind = given["format"] or Path(given["file"] or "report.html").suffix[1:]
    one_of("format" if given["format"] else "file's ending", kind, FORMATS)
    one_of("seeds", given["seeds"], ("mean", "each"))
    outputs = Path(given["paths.outputs"] or "")
    file = Path(given["file"] or outputs / f"report.{kind}").expanduser()
    if file.is_dir():
        raise ValueError(f"file must be a file to write, {file} is a folder")
    found = collect(outputs, given["where"] or ())
    if kind == "html":
        # the rest is slow to import, and imports torch
        from vae_lab.report.payload import payload

        page = payload(found, given["x"], given["y"], given["color"])
        try:
            from vae_lab.report.page import render

            content = render(page).encode()
        except ImportError as error:
            raise ValueError(f"the page needs {error.name}: pip install 'vae-lab[report]'") from error
    else:
        content = tabulated(found, kind, given)
    write(file, content)
    tell(found, file, len(content))
    return 0


def usage() -> str:
    """What `--help` prints: the keys of `conf/report.yaml` with its comments."""
    text = (hints.CONF / "report.yaml").read_text()
    keys = re.findall(r"^( *)(\w+): (\S+) *# (.+)$", text, re.MULTILINE)
    lines = [f"  {'paths.' * bool(indent) + key + '=' + value:22} {what}" for indent, key, value, what in keys]
    return "\n".join(["usage: vae-lab report [folder] [key=value ...]", "", "keys:", *lines])


def options(words: Sequence[str]) -> dict[str, str | None]:
    """The keys of `conf/report.yaml` with the values that were given."""
    own = hints.read("report")
    found: dict[str, str | None] = {key: value for key, value in own.items() if key not in ("defaults", "paths")}
    found |= {f"paths.{key}": value for key, value in own["paths"].items()}
    folders = []
    for word in words:
        key, equals, value = word.partition("=")
        if key in found and equals:
            found[key] = None if value in ("", "null") else value
        elif Path(word).is_dir() or not equals:
            folders.append(word)
        else:
            near = closest(key, found)
            hint = near or f"; a condition on runs is where='{word}'"
            raise ValueError(f"{word}: no key {key!r}{hint}; keys: {', '.join(sorted(found))}")
    if len(folders) > 1:
        raise ValueError(f"only one folder of runs can be given, got {' and '.join(folders)}")
    return found | ({"paths.outputs": folders[0]} if folders else {})


def tabulated(found: Rows, kind: str, given: dict[str, str | None]) -> bytes:
    """The table of the runs in a file's format."""
    from vae_lab.report.metrics import measures
    from vae_lab.report.payload import axis, choose

    choose([axis(found.rows, key) for key in found.axes()], measures(found), given["x"], given["y"], given["color"])
    if kind in ("md", "tex"):
        from vae_lab.report.tables import latex, markdown, table

        what = table(found, given["y"], each=given["seeds"] == "each")
        return (markdown if kind == "md" else latex)(what).encode()
    from vae_lab.report.frame import tabulated

    df = tabulated(found.rows)
    return df.to_csv(index=False).encode() if kind == "csv" else df.to_parquet(index=False)


def write(file: Path, content: bytes) -> None:
    """The whole file or none of it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def tell(found: Rows, file: Path, size: int) -> None:
    """Prints where the report is, and what is not in it."""
    console = Console()
    for folder, why in found.broken:
        console.print(f"warning: {folder.name}: {why}", style="yellow", soft_wrap=True, highlight=False, markup=False)
    paths_list({"runs": str(len(found.rows)), "written": f"{shown(file.absolute())} ({size / 1e6:.1f} MB)"}, console)
