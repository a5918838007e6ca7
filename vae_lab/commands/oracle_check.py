"""`vae-lab oracle check`: the note's equations, each measured and held against its exact value."""

import contextlib
import inspect
import sys
from collections.abc import Collection
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import torch
from omegaconf import DictConfig, ListConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vae_lab import runs
from vae_lab.checks import closest
from vae_lab.commands.tables import paths_list, shown
from vae_lab.proofs import SUITE, Row

RESULT = "check.json"
SIGNS = {"=": "=", "!=": "≠", "<=": "≤", ">=": "≥"}


class Proof(NamedTuple):
    """One check: the equation that it proves, what that says, its rows, and the seconds that it took."""

    equation: str
    what: str
    rows: list[Row]
    seconds: float


def run(cfg: DictConfig) -> float | None:
    """Prints the proof sheet and keeps it as JSON; exits 1 unless every row holds.

    Raises:
        ValueError: for an equation that there is no check of.
    """
    folder = Path(cfg.paths.run)
    try:
        equations = chosen(cfg.only)
    except Exception:
        with contextlib.suppress(OSError):
            folder.rmdir()  # Hydra made it; only an empty one goes
        raise
    console, proofs = Console(), []
    line(console, "", ("measured", "", "exact", "tolerance", ""))
    for equation in equations:
        for check in SUITE[equation]:
            proofs.append(prove(equation, check))
            show(console, proofs[-1])
    rows = [row for proof in proofs for row in proof.rows]
    wrong = sum(not row.holds for row in rows)
    runs.write(folder / RESULT, {"holds": not wrong, "proofs": [record(proof) for proof in proofs]})
    seconds = sum(proof.seconds for proof in proofs)
    console.print(f"\n{len(rows) - wrong} of {len(rows)} hold; {seconds:.0f} seconds", highlight=False)
    paths_list({"written": str(shown(folder / RESULT))}, console)
    if wrong:
        sys.exit(f"error: {wrong} of {len(rows)} do not hold: {', '.join(broken(proofs))}")
    return 0.0


def chosen(only: object) -> list[str]:
    """The keys of SUITE that are asked for, as they stand there or by an equation within them; all for none."""
    words = [str(word) for word in (only if isinstance(only, list | ListConfig) else [only])]
    for word in words:
        if not any(word == key or word in within(key) for key in SUITE):
            raise ValueError(f"only must be among {', '.join(SUITE)}, got {word!r}{closest(word, SUITE)}")
    return [key for key in SUITE if not words or key in words or within(key) & set(words)]


def within(key: str) -> set[str]:
    """The equations of a key: those from 9 to 10 for "9-10"."""
    first, _, last = key.partition("-")
    return {str(i) for i in range(int(first), int(last or first) + 1)} if first.isdigit() else {key}


def prove(equation: str, check: object) -> Proof:
    """What a check finds, on one thread: the tensors are small."""
    assert callable(check)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = perf_counter()
    try:
        rows = list(check())
    finally:
        torch.set_num_threads(threads)
    return Proof(equation, " ".join((inspect.getdoc(check) or "").split()), rows, perf_counter() - start)


def show(console: Console, proof: Proof) -> None:
    """Prints what a check proves, and its rows."""
    label = "" if proof.what.startswith("(") else f"{proof.equation}: "
    console.print(f"\n{label}{proof.what}", style="bold", markup=False, highlight=False)
    for row in proof.rows:
        numbers = f"{row.measured:.7g}", SIGNS[row.relation], f"{row.exact:.7g}", f"{row.tolerance:.1g}"
        line(console, row.what, (*numbers, "[green]✓[/green]" if row.holds else "[red]✗[/red]"))


def line(console: Console, what: str, cells: tuple[str, str, str, str, str]) -> None:
    """Prints one row; its columns have the same widths in all."""
    table = Table.grid(padding=(0, 1))
    table.add_column(width=max(20, min(console.width, 120) - 48))
    for width, justify in ((13, "right"), (1, "left"), (13, "right"), (9, "right"), (1, "left")):
        table.add_column(width=width, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_row(f"  {escape(what)}", *cells)
    console.print(table)


def record(proof: Proof) -> dict[str, object]:
    """A proof as JSON."""
    rows = [row._asdict() | {"holds": row.holds} for row in proof.rows]
    return {"equation": proof.equation, "what": proof.what, "seconds": round(proof.seconds, 3), "rows": rows}


def broken(proofs: Collection[Proof]) -> list[str]:
    """The equations of which something does not hold."""
    return list(dict.fromkeys(p.equation for p in proofs if not all(row.holds for row in p.rows)))
