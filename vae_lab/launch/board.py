"""What the user sees of a sweep: a live table on a terminal, a line for each event, and at the end what failed.

Rich is imported once a job starts: a sweep that is finished has nothing to show that takes it.
"""

import time
from collections.abc import Sequence
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, final

from vae_lab.launch import job
from vae_lab.launch.job import Outcome
from vae_lab.launch.plan import Cell

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.live import Live


@final
class Board:
    """The jobs of a sweep as they come and go. A context: the live table is up inside it.

    Args:
        cells: all of them, the finished ones too
        slots: how many run at a time
        console: where to write
    """

    def __init__(self, cells: Sequence[Cell], slots: int, console: "Console | None" = None) -> None:
        self.cells, self.slots = cells, max(1, slots)
        self.console = console
        self.live: Live | None = None
        self.running: dict[int, tuple[float, str]] = {}  # cell -> when it began, and where
        self.outcomes: dict[int, Outcome] = {}
        self.skipped: set[int] = set()
        self.seconds: list[float] = []  # that each finished job took
        self.signal: int | None = None  # what ended the sweep, if a signal did

    def __enter__(self) -> "Board":
        from rich.console import Console
        from rich.live import Live

        self.console = self.console or Console()
        if self.console.is_terminal:
            self.live = Live(console=self.console, get_renderable=self.table, refresh_per_second=2, transient=True)
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()

    def skip(self, i: int, outcome: Outcome) -> None:
        """Cell i needs no job: its run was finished before, or is another cell's."""
        self.outcomes[i] = outcome
        self.skipped.add(i)

    def start(self, i: int, where: str) -> None:
        """Cell i's job begins."""
        self.running[i] = time.monotonic(), where
        verb = "continues" if self.cells[i].state == "partial" else "starts"
        self.say(f"[cyan]{verb}[/cyan]   {self.name(i)}  [dim]{escape(where)}[/dim]")

    def end(self, i: int, outcome: Outcome) -> None:
        """Cell i's job has ended."""
        began, _ = self.running.pop(i)
        self.outcomes[i] = outcome
        seconds = time.monotonic() - began
        if outcome.state == "finished":
            self.seconds.append(seconds)
            value = "" if outcome.value is None else f"  val/elbo {outcome.value:.3f}"
            self.say(f"[green]finished[/green] {self.name(i)}{value}  [dim]{seconds:.0f} s[/dim]")
        else:
            self.say(f"[red]{outcome.state:8}[/red] {self.name(i)}: {escape(str(outcome.error))}")

    def leave(self, i: int, why: str) -> None:
        """Cell i, which was to run, waits for another place."""
        self.running.pop(i)
        self.say(f"[cyan]waits[/cyan]    {self.name(i)}: {escape(why)}")

    def failures(self) -> int:
        """How many jobs have failed."""
        return sum(o.state == "failed" for i, o in self.outcomes.items() if i not in self.skipped)

    def name(self, i: int) -> str:
        """Which cell it is, as the user knows it."""
        # how a trial reports to its study is nothing that the user typed
        words = [word for word in self.cells[i].overrides if not word.startswith("+callbacks.pruning.")]
        return f"{i + 1}/{len(self.cells)} {escape(' '.join(words) or 'defaults')}"

    def say(self, text: str) -> None:
        if self.console is None and not set("[\\") & set(text):  # nothing that is marked up
            print(text, flush=True)
            return
        from rich.console import Console

        self.console = self.console or Console()
        self.console.print(text, soft_wrap=True, highlight=False)

    def counts(self) -> str:
        """How far the sweep is, in one line."""
        ended = [o for i, o in self.outcomes.items() if i not in self.skipped]
        done = sum(o.state == "finished" for o in ended)
        words = [f"{len(self.cells)} runs: {done} finished"]
        numbers = {
            "skipped": len(self.skipped),
            "running": len(self.running),
            "failed": sum(o.state == "failed" for o in ended),
            "partial": sum(o.state == "partial" for o in ended),
            "waiting": len(self.cells) - len(self.outcomes) - len(self.running),
        }
        return ", ".join(words + [f"{n} {name}" for name, n in numbers.items() if n])

    def left(self) -> timedelta | None:
        """The time that is left, were each job to take as long as the finished ones did."""
        if not self.seconds:
            return None
        mean, now = sum(self.seconds) / len(self.seconds), time.monotonic()
        waiting = len(self.cells) - len(self.outcomes) - len(self.running)
        begun = sum(max(0.0, mean - (now - began)) for began, _ in self.running.values())
        return timedelta(seconds=round((waiting * mean + begun) / self.slots))

    def best(self) -> str | None:
        """The best val/elbo so far, and whose it is."""
        values = {i: o.value for i, o in self.outcomes.items() if o.value is not None}
        if not values:
            return None
        i = max(values, key=values.__getitem__)
        return f"best val/elbo {values[i]:.3f}: {self.name(i)}"

    def table(self) -> "Group":
        """The live table."""
        from rich.console import Group
        from rich.table import Table

        table = Table(box=None, pad_edge=False, show_header=False)
        for i, (began, where) in self.running.items():
            table.add_row(
                "[cyan]running[/cyan]", self.name(i), f"[dim]{escape(where)}[/dim]", f"{time.monotonic() - began:.0f} s"
            )
        left, best = self.left(), self.best()
        head = self.counts() + (f"; {left} left" if left is not None else "")
        return Group(table, head, *([best] if best else []))

    def close(self) -> None:
        """Says how the sweep ended, and of each cell that failed: its overrides, why, and its last words."""
        for i in sorted(i for i, outcome in self.outcomes.items() if outcome.state == "failed"):
            folder = self.cells[i].folder
            self.say(f"\n[red]failed[/red]   {self.name(i)}: {escape(str(self.outcomes[i].error))}")
            for line in job.tail(folder):
                self.say(f"  [dim]{escape(line)}[/dim]")
            self.say(f"  [dim]{escape(folder)}/{job.LOG}[/dim]")
        if best := self.best():
            self.say(best)
        self.say(self.counts())
        if self.signal is not None or any(o.state != "finished" for o in self.outcomes.values()):
            self.say("the same command runs what is not finished, from where it was")


def escape(text: str) -> str:
    """What rich shows as `text`."""
    if "[" not in text and not text.endswith("\\"):
        return text
    from rich import markup

    return markup.escape(text)
