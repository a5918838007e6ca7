"""`vae-lab runs watch`: what is running now, from the files alone, so from any terminal and any host that sees them."""

import time
from collections.abc import Sequence
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vae_lab import runs
from vae_lab.runs import identity, record, sweeps
from vae_lab.runs.files import tail

PERIOD = 1.0  # seconds between looks at the files
COLOURS = {"running": "cyan", "starting": "blue", "finished": "green", "failed": "red", "partial": "yellow"}
LINES = 3  # of a failed run's log


class Seen(NamedTuple):
    """One run, as its files show it."""

    name: str  # the folder's
    words: str  # what was asked for
    state: str  # one of record.STATES; or of a cell of a sweep that has recorded nothing: starting, waiting
    epochs: int  # done
    of: float | None  # epochs in all, where that is known
    elbo: float | None  # nats per datapoint: the last on validation data, or else on training data
    rate: float | None  # images a second
    left: float | None  # seconds
    seconds: float  # that it has taken
    error: str | None
    log: list[str]


class View(NamedTuple):
    """What there is to see: runs of a sweep that is running, or runs that are running by themselves."""

    title: str
    slots: int  # how many run at a time
    seen: list[Seen]


def watch(outputs: Path, once: bool, console: Console | None = None) -> int:
    """Shows what is running until nothing is, or Ctrl-C; once, if `once` or where there is no terminal."""
    console = console or Console()
    if once or not console.is_terminal:
        console = console if console.is_terminal else Console(file=console.file, width=160)
        for shape in [shown(view) for view in look(outputs)] or ["nothing is running"]:
            console.print(shape)
        return 0
    names: set[str] = set()
    with Live(console=console, auto_refresh=False) as live:
        while views := look(outputs):
            names |= {run.name for view in views for run in view.seen if run.state == "running"}
            live.update(Group(*(shown(view, console.height - 5) for view in views)), refresh=True)
            time.sleep(PERIOD)
        live.update(Text(""), refresh=True)
    now = time.time()
    done = [see(outputs / name, [], name in names, now) for name in sorted(names)]
    console.print(*([shown(View("they have ended", 1, done))] if done else []), "nothing is running")
    return 0


# --- what the files say


def look(outputs: Path) -> list[View]:
    """The sweeps that are running, and the runs that are running in none of them."""
    now, views, known = time.time(), [], set[str]()
    for note in sweeps.running(outputs):
        cells = {str(cell["run"]): cell for cell in note["cells"]}
        seen = [see(outputs / name, cell["overrides"], True, now) for name, cell in cells.items()]
        views.append(View(note.get("name") or "a sweep", note["slots"], seen))
        known |= cells.keys()
    locked = (path.parent for path in sorted(outputs.glob(f"*/{record.LOCK}")) if not path.parent.name.startswith("."))
    alone = [folder for folder in locked if folder.name not in known and record.state(folder) == "running"]
    if others := [see(folder, [], False, now) for folder in alone]:
        views.append(View("by themselves" if views else "running", max(1, len(others)), others))
    return views


def see(folder: Path, overrides: Sequence[str], waits: bool, now: float) -> Seen:
    """The run in `folder`; one that `waits` is a sweep's, and has begun only once its job has a log."""
    known, state = record.read(folder) or {}, record.state(folder)
    if state == "new" and waits:
        state = "starting" if (folder / runs.LOG).exists() else "waiting"
    words = identity.run_name(list(overrides) or known.get("overrides") or [])
    done = progress(folder / runs.HISTORY) if known else Progress(0, 0, None, None)
    seconds, left, of = float(known.get("seconds") or 0.0), None, None
    if state == "running" and known:
        began = (folder / record.RECORD).stat().st_mtime  # its record is written as training begins, and as it ends
        of = epochs(folder / runs.CONFIG, done)
        if done.epochs and of is not None:
            last = max(began, (folder / runs.HISTORY).stat().st_mtime)
            left = max(0.0, (seconds + last - began) / done.epochs * (of - done.epochs) - (now - last))
        seconds += now - began
    elbo = (known.get("results") or {}).get("val/elbo", done.elbo)
    failed = state == "failed"
    log = tail(folder, LINES) if failed else []
    error = str(known.get("error")) if failed else None
    return Seen(folder.name, words, state, done.epochs, of, elbo, done.rate, left, seconds, error, log)


class Progress(NamedTuple):
    """How far a run is, as its history has it."""

    epochs: int
    steps: int
    elbo: float | None
    rate: float | None


def progress(path: Path) -> Progress:
    """What the history in `path` says; it is read again when it has grown."""
    try:
        status = path.stat()
    except OSError:
        return Progress(0, 0, None, None)
    return _progress(path.absolute(), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1024)
def _progress(path: Path, size: int, modified: int) -> Progress:
    epochs = steps = 0
    held_out = training = rate = None
    for row in _rows(path):
        steps = max(steps, int(row.get("step") or 0))
        held_out, training = row.get("val/elbo", held_out), row.get("train/elbo", training)
        if "train/images_per_second" in row:  # once an epoch
            epochs, rate = epochs + 1, row["train/images_per_second"]
    return Progress(epochs, steps, training if held_out is None else held_out, rate)


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        return [row for row in runs.rows(path) if isinstance(row, dict)]
    except (OSError, ValueError):  # half a row in the middle: somebody else's
        return []


def epochs(path: Path, done: Progress) -> float | None:
    """How many epochs the run will have, by its configuration; None where it ends otherwise, or cannot be read."""
    try:
        trainer = _trainer(path.absolute(), path.stat().st_mtime_ns)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    limits = [float(trainer["max_epochs"])] if (trainer.get("max_epochs") or -1) > 0 else []
    if (trainer.get("max_steps") or -1) > 0 and done.epochs:
        limits.append(trainer["max_steps"] / done.steps * done.epochs)
    return min(limits, default=None)


@lru_cache(maxsize=1024)
def _trainer(path: Path, modified: int) -> dict[str, Any]:
    return runs.read_config(path.parent)["trainer"]


# --- how it is shown


def shown(view: View, height: int | None = None) -> RenderableType:
    """A sweep as a table, what runs first, and why runs have failed; of a long one only what `height` lines hold."""
    order = ("running", "starting", "failed", "partial", "waiting", "new", "finished")
    rows = sorted(view.seen, key=lambda run: order.index(run.state))
    shared = set.intersection(*(set(run.words.split()) for run in rows)) if len(rows) > 1 else set()
    table = Table("state", "epoch", "ELBO", "images/s", "time", "left", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_column("run", no_wrap=True, overflow="ellipsis")
    failures = [line for run in rows if run.state == "failed" for line in why(run, shared)]
    room = len(rows) if height is None else max(3, height - len(failures))
    for run in rows[:room]:
        table.add_row(*cells(run, shared))
    more = [Text(f"... and {len(rows) - room} more", style="dim")] if len(rows) > room else []
    title = Text(f"{view.title}  ", style="bold", overflow="fold").append(summary(view), style="not bold")
    return Group(title, table, *more, *failures)


def why(run: Seen, shared: set[str]) -> list[Text]:
    """Why a run has failed, and its last words."""
    first = Text.assemble(
        ("failed  ", "red"), apart(run, shared), ": ", str(run.error), no_wrap=True, overflow="ellipsis"
    )
    return [first, *(Text(f"  {line}", style="dim", no_wrap=True, overflow="ellipsis") for line in run.log)]


def apart(run: Seen, shared: set[str]) -> str:
    """What a run was asked for, without what all were asked for."""
    return " ".join(word for word in run.words.split() if word not in shared) or run.words


def cells(run: Seen, shared: set[str]) -> list[Text]:
    """A run as a row."""
    begun = run.state not in ("waiting", "starting", "new")
    middle = [
        f"{run.epochs}" + ("" if run.of is None else f"/{run.of:.0f}") if begun else "",
        "" if run.elbo is None else f"{run.elbo:.3f}",
        "" if run.rate is None or run.state != "running" else f"{run.rate:,.0f}",
        clock(run.seconds) if begun else "",
        "" if run.left is None else clock(run.left),
    ]
    return [Text(run.state, style=COLOURS.get(run.state, "dim")), *map(Text, middle), Text(apart(run, shared))]


def summary(view: View) -> str:
    """How far a sweep is, and the time that is left, were each cell to take as long as the others do."""
    states = [run.state for run in view.seen]
    counts = [
        f"{states.count(s)} {s}"
        for s in ("finished", "running", "starting", "failed", "partial", "waiting")
        if s in states
    ]
    words = f"{len(states)} runs: {', '.join(counts)}"
    whole = [run.seconds for run in view.seen if run.state == "finished"]
    whole += [run.seconds + run.left for run in view.seen if run.left is not None]
    left = [run.left for run in view.seen if run.left is not None]
    waiting = states.count("waiting") + states.count("starting")
    if whole and (left or waiting):
        mean = sum(whole) / len(whole)
        words += f"; about {clock(max(max(left, default=0.0), (sum(left) + waiting * mean) / view.slots))} left"
    return words


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds))).removeprefix("0:")
