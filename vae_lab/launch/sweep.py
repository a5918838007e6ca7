"""One sweep, whatever places its jobs: planned first, refused whole if a cell is wrong, run, summed up."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from omegaconf import DictConfig

from vae_lab import garbage
from vae_lab.checks import flag
from vae_lab.launch import job
from vae_lab.launch.board import Board, escape
from vae_lab.launch.job import Outcome
from vae_lab.launch.plan import Call, Cell, here, plan, refuse
from vae_lab.runs import record, sweeps


class JobFailed(HydraException):
    """A job of a sweep did not finish."""


Place = Callable[[Sequence[Cell], Sequence[int], list[str], Board], None]
"""Runs the jobs of the cells that the second argument numbers, each `job.command([*third, *cell.overrides])` in a
process of its own; tells the board of each when it starts and when it ends."""


def launch(
    config: DictConfig,
    overrides_of_cells: Sequence[Sequence[str]],
    slots: int,
    place: Place,
    call: Call = here,
) -> list[JobReturn]:
    """Runs a sweep; the result of each cell, for Hydra's sweepers.

    A cell whose run is finished is not run again, and of several cells that are the same run one is run.

    Args:
        config: the sweep's, as Hydra has composed it
        overrides_of_cells: what each cell was asked for
        slots: how many jobs run at a time
        place: what runs them
        call: see `plan`
    Raises:
        ValueError: if something is wrong with any cell, before the first one starts.
        SystemExit: with 128 + n, if signal n ended the sweep.
    """
    check = config.get("check") is not None and flag("check", config.check)
    cells = plan(config, overrides_of_cells, call=here if check else call)
    refuse(cells)
    if check:
        from vae_lab.launch import look

        look.show(config, cells, slots)
        return [returned(cell, Outcome("finished")) for cell in cells]
    inherited = job.inherited(config)
    first = {cell.fingerprint: i for i, cell in reversed(list(enumerate(cells)))}
    again = bool(config.get("force"))
    waiting = [i for i in sorted(first.values()) if again or cells[i].state != "finished"]
    board = Board(cells, slots)
    for i, cell in enumerate(cells):
        if first[cell.fingerprint] not in waiting:
            board.skip(i, job.outcome(cell.folder, 0))
    outputs = Path(cells[0].folder).parent if cells else Path()
    if waiting:
        garbage.heeded()
        notes = [{"run": Path(cell.folder).name, "overrides": cell.overrides} for cell in cells]
        with sweeps.noted(outputs, notes, slots), board:
            place(cells, waiting, inherited, board)
    for i, cell in enumerate(cells):
        if i not in board.outcomes and (same := board.outcomes.get(first[cell.fingerprint])):
            board.skip(i, same)
    board.close()
    if any(offline(Path(cell.folder)) for cell in cells):
        where = Path(os.path.relpath(outputs)) / record.WANDB
        board.say(f"W&B      offline; to upload: wandb sync {escape(str(where))}/offline-run-*")
    if board.signal is not None:
        raise SystemExit(128 + board.signal)
    left = Outcome("new", error="not started")
    return [returned(cell, board.outcomes.get(i, left)) for i, cell in enumerate(cells)]


def offline(folder: Path) -> bool:
    """Whether the run in `folder` has something that W&B has kept offline, and not uploaded since."""
    return any(
        path.name.startswith("offline-") and not any(path.glob("*.synced")) for path in record.wandb_folders(folder)
    )


def returned(cell: Cell, outcome: Outcome) -> JobReturn:
    """What Hydra's sweepers want to know."""
    done = JobReturn(overrides=cell.overrides, working_dir=cell.folder, task_name="train")
    done.status = JobStatus.COMPLETED if outcome.state == "finished" else JobStatus.FAILED
    done.return_value = outcome.value if outcome.state == "finished" else JobFailed(f"{outcome.state}: {outcome.error}")
    return done
