"""What the commands print: tables of results, and paths. Needs no torch."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def results_table(title: str, rows: dict[str, str], console: Console) -> None:
    """Prints a title, and names and values, one row each."""
    console.print(title, soft_wrap=True, highlight=False, markup=False)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)


def paths_list(rows: dict[str, str], console: Console) -> None:
    """Prints names and paths, one row each and never broken, so that they can be copied."""
    for name, path in rows.items():
        console.print(f"[cyan]{name:12}[/cyan] {escape(path)}", soft_wrap=True, highlight=False)


def shown(path: Path) -> Path:
    """`path` as seen from here, where it lies below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def plus_minus(values: Mapping[str, float | None], name: str) -> str:
    """`value ± standard error` of a metric, where it has one."""
    value, error = values.get(name), values.get(f"{name}_se")
    if value is None:
        return "not finite"
    return f"{value:.3f}" + (f" ± {error:.3f}" if error is not None else "")
