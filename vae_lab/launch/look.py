"""Look before you leap: what each cell of a sweep would take; nothing is trained."""

from collections.abc import Sequence
from datetime import timedelta

from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vae_lab import application, garbage
from vae_lab.launch.plan import WRONG, Cell, configs, refuse
from vae_lab.runs import identity


def show(config: DictConfig, cells: Sequence[Cell], slots: int, console: Console | None = None) -> None:
    """Prints a table of the cells: how far each has come and, measured once for each architecture, what it takes.

    Raises:
        ValueError: if a cell does not fit its data.
    """
    from vae_lab.commands import check  # imports torch

    garbage.heeded()  # else the data and model of each architecture would stay
    console = console or Console()
    table = Table("cell", "run", "state", "parameters", "memory", "time", box=None, pad_edge=False)
    measured: dict[str, check.Cost] = {}
    seconds, judged = 0.0, list(cells)
    for i, (cell, cfg) in enumerate(zip(cells, configs(config, [cell.overrides for cell in cells]), strict=True), 1):
        row = [str(i), escape(identity.run_name(cell.overrides)), cell.state]
        try:
            if isinstance(cfg, Exception):
                raise cfg
            cfg.logger, cfg.paths.run = None, cell.folder  # they would ask Hydra for the run's name
            if (like := check.architecture(cfg)) not in measured:
                measured[like] = check.cost(cfg)
            found = measured[like]
            table.add_row(*row, *found.shown().values())
            seconds += found.seconds if cell.state in ("new", "failed") else 0.0
        except WRONG as error:
            table.add_row(*row, "[red]wrong[/red]")
            judged[i - 1] = cell._replace(error=application.explain(error, "train", cell.overrides))
    console.print(table)
    states = [cell.state for cell in cells]
    numbers = {state: states.count(state) for state in ("new", "partial", "failed", "running", "finished")}
    total = timedelta(seconds=round(seconds / slots))
    said = ", ".join(f"{n} {state}" for state, n in numbers.items() if n)
    console.print(f"{len(cells)} runs: {said}; {len(measured)} architectures; about {total}, {slots} at a time")
    refuse(judged)
