"""What a step of one model costs, against the number of models that are trained together, their shape, and the number
of processes; and what its matrix products alone would cost."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.comparison import About, Comparison, Taken, compare
from benchmarks.contenders import Job
from benchmarks.machine import cores
from benchmarks.packed import BETWEEN, PLAIN, together
from benchmarks.team import BARE, COMPILED, EAGER, ROOF, Team, packed_of
from benchmarks.worker import Worker
from benchmarks.workloads import W5, Workload, write

AXES = {
    "N": [1, 2, 4, 16, 64, 256],
    "d": [2, 8, 32, 128],
    "V": [1, 4, 16, 64],
    "batch": [10, 100, 1000],
    "width": [32, 128, 512, 2048],
    "processes": [],  # 1, 2, 4 ... as many as there are cores
}
WORK = 3000 * W5.flops()  # of a segment's matrix products
RUNS = "whole runs"
FEWEST, WHOLE = 100, 500  # steps of a segment; of one that is whole runs


def run(given: Namespace, folder: Path) -> Iterator[Comparison]:
    """A comparison for each point of each axis, around W5."""
    for axis in given.axes:
        for at in given.at or AXES[axis] or doubled(cores()):
            yield {"N": models, "processes": processes}.get(axis, shape)(axis, at, given, folder)


def shape(axis: str, at: int, given: Namespace, folder: Path) -> Comparison:
    """With another d, V, batch or width: one model, and several at once."""
    work, n = sized(W5._replace(**{"hidden": [at]} if axis == "width" else {axis: at}), 1, given), given.models
    file = str(write(work, folder))
    with Team(given, 1) as team:
        team.join(BARE, Job("bare", work, file, str(folder), given.device))
        team.join(COMPILED, Job("shipped", work, file, str(folder / "runs"), given.device, kind="compiled"))
        many = sized(work, n, given)
        team.join(steps_of(n), Job("stacked", many, file, str(folder), given.device, n))
        team.join(ROOF, Job("products", work, file, str(folder), given.device))
        return point(axis, at, team.members, team, work, given)


def models(axis: str, at: int, given: Namespace, folder: Path) -> Comparison:
    """With so many models at once: whole runs, and their steps alone."""
    one, work, n = sized(W5, 1, given), sized(W5, at, given, WHOLE), at
    file = str(write(work, folder))
    with Team(given, 1) as team:
        team.join(BARE, Job("bare", one, str(write(one, folder)), str(folder), given.device))
        team.join("steps alone", Job("stacked", work, file, str(folder), given.device, n))
        team.join(ROOF, Job("products", work, file, str(folder), given.device, n))
        members: dict[str, Callable[[], Taken]] = dict(team.members)
        if given.launcher != "none":
            rest = team.members[BARE], f"{RUNS}, {BETWEEN}"
            members[RUNS] = together(work, n, given, folder, *rest)
        return point(axis, at, members, team, work, given)


def processes(axis: str, at: int, given: Namespace, folder: Path) -> Comparison:
    """So many processes at once, each of which trains one model on one thread."""
    work = sized(W5, 1, given)
    file = str(write(work, folder))
    with Team(given) as team:
        crews: dict[str, list[Worker]] = {}
        for name, module, kind in (BARE, "bare", ""), (EAGER, "shipped", "eager"), (COMPILED, "shipped", "compiled"):
            for i in range(at):
                label, runs = f"{name} {i}", folder / f"{module}-{kind}-{i}"
                team.join(label, Job(module, work, file, str(runs), given.device, kind=kind))
                crews.setdefault(name, []).append(team.members[label])
        return point(axis, at, {name: at_once(crew) for name, crew in crews.items()}, team, work, given)


def at_once(crew: list[Worker]) -> Callable[[], Taken]:
    """Model-steps per second of processes that train at the same time."""

    def segment() -> Taken:
        with ThreadPoolExecutor(len(crew)) as threads:
            found = list(threads.map(lambda worker: worker(), crew))
        return Taken(sum(taken.value for taken in found))

    return segment


def point(
    axis: str, at: int, members: Mapping[str, Callable[[], Taken]], team: Team, work: Workload, given: Namespace
) -> Comparison:
    """The comparison at one value of an axis."""
    about = About(f"{axis}={at}", f"{work.title}, {axis} = {at}", "steps/s", (), team.notes, work.flops(), axis, at)
    return compare(about, {name: unscored(member) for name, member in members.items()}, given.segments)


def unscored(member: Callable[[], Taken]) -> Callable[[], Taken]:
    """A contender without its loss: here they make different numbers of steps."""

    def segment() -> Taken:
        return member()._replace(loss=None)

    return segment


def sized(work: Workload, n: int, given: Namespace, fewest: int = FEWEST) -> Workload:
    """The workload with so many steps that n models take about as long as W5 alone."""
    steps = given.steps or max(fewest, round(WORK / work.flops() / n / 10) * 10)
    return work._replace(steps=min(W5.steps, steps))


def steps_of(n: int) -> str:
    """Several models at once, without what surrounds their steps."""
    return f"{packed_of(n)}, steps alone"


def doubled(most: int) -> list[int]:
    """1, 2, 4 ... and `most`."""
    return sorted({2**i for i in range(most.bit_length()) if 2**i <= most} | {most})


def options(parser: ArgumentParser) -> None:
    """Of the command line."""
    parser.add_argument("--axes", nargs="+", default=list(AXES), choices=AXES, help="what is varied (default: all)")
    parser.add_argument("--at", nargs="+", type=int, help="the values, for one axis (default: the usual ones)")
    parser.add_argument("--models", type=int, default=16, help="at once, where N is not varied (default: %(default)s)")
    parser.add_argument("--launcher", default="packed", help="of the whole runs where N is varied; or none")
    parser.add_argument("--overrides", nargs="*", default=PLAIN, help="of its runs (default: %(default)s)")
