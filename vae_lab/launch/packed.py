"""The runs of a sweep that differ in numbers alone, trained as one stacked model in one process; the others as jobs."""

import json
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, final

from hydra.core.utils import JobReturn
from omegaconf import DictConfig, OmegaConf, open_dict

from vae_lab import application, hints
from vae_lab.checks import number, whole
from vae_lab.launch import job, sweep
from vae_lab.launch.board import Board, escape
from vae_lab.launch.job import Outcome
from vae_lab.launch.limits import share
from vae_lab.launch.plan import Call, Cell, configs, here
from vae_lab.launch.pool import Device, Pool, Single, Slot, Sweep, Task, warm_server
from vae_lab.launch.warm import Server, Worker
from vae_lab.runs import record

PROCESS, RUN = 2**30, 2**24
"""Bytes that a group's process takes, and each of its runs, whatever is trained: as was measured, rounded up."""

FREE = ("seed", "optimizer.lr", "trainer.max_epochs", "trainer.max_steps")
"""Keys in which runs that are trained as one may differ; d, where a latent dimension that is not used does nothing; and
all floats of these groups:"""

FLOATS = ("encoder", "decoder", "likelihood", "objective", "prior", "posterior")

ASIDE = ("paths", "logger", "check", "force", "wait")
"""Keys that are each run's own affair."""


class Run(NamedTuple):
    """A run of a group, as the group's process is told of it."""

    config: DictConfig
    hydra: DictConfig  # what Hydra would know of it, if it were alone
    command: list[str]  # that trains it alone
    log: Path


class Need(NamedTuple):
    """What a run takes that is trained with others. It comes from another process, and brings no torch along."""

    flops: int  # floating-point operations of an optimiser step
    memory: int  # bytes


@final
class Packed:
    """Groups of runs on this machine, each group in one process; as many processes at a time as there are slots.

    Args:
        devices, threads, max_failures: see `Pool`
        size: the most runs in a group; there are fewer in it where memory does not suffice
        flops: on a CPU, a run whose optimiser step takes more floating-point operations than this is a job of its own:
            its step is no slower than its arithmetic, and gains nothing
        steps: from how many optimiser steps on, of a group's runs together, their step is compiled by `engine=auto`
    Raises:
        ValueError: for what is not of that kind.
    """

    def __init__(
        self,
        devices: Sequence[Device | Sequence[Device]] | None = None,
        threads: int | None = None,
        max_failures: int | None = None,
        size: int = 64,
        flops: float = 1e8,
        steps: int = 20000,
    ) -> None:
        self.pool = Pool(devices, threads, max_failures)
        self.size, self.steps = whole("hydra.launcher.size", size), whole("hydra.launcher.steps", steps, least=0)
        self.flops = number("hydra.launcher.flops", flops, least=0)

    def launch(self, config: DictConfig, overrides_of_cells: Sequence[Sequence[str]]) -> list[JobReturn]:
        """Runs the sweep that Hydra has composed `config` for; the result of each cell."""
        slots = self.pool.slots(config)
        with warm_server(slots) as server:
            place = partial(self.run, config, slots, server)
            return sweep.launch(config, overrides_of_cells, len(slots), place, server.call)

    def run(
        self,
        config: DictConfig,
        slots: Sequence[Slot],
        server: Server,
        cells: Sequence[Cell],
        waiting: Sequence[int],
        inherited: list[str],
        board: Board,
    ) -> None:
        """Runs the groups, and what is in none, or could not be trained in one, as jobs of the pool."""
        found = dict(zip(waiting, configs(config, [cells[i].overrides for i in waiting]), strict=True))
        # all, as nothing is wrong with them; but a group does not wait for another process
        planned = {
            i: cfg
            for i, cfg in found.items()
            if isinstance(cfg, DictConfig) and record.state(cells[i].folder) != "running"
        }
        groups = self.groups(planned, slots, server.call, board.say)
        packed, whole = {i for group in groups for i in group}, Sweep(cells, inherited, board, server)
        tasks: list[Task] = [
            Group(whole, {i: described(planned[i], cells[i], config, inherited) for i in group}, self.steps)
            for group in groups
        ]
        tasks += [Single(whole, i) for i in waiting if i not in packed]
        self.pool.run(slots, tasks, board)

    def groups(
        self,
        runs: Mapping[int, DictConfig],
        slots: Sequence[Slot],
        call: Call = here,
        say: Callable[[str], object] = lambda text: None,
    ) -> list[list[int]]:
        """The runs that are to be trained as one, by their numbers: at least two in each. Why the others are not, is
        said."""
        alike, alone = dict[str, list[int]](), dict[str, list[int]]()
        for i, cfg in runs.items():
            if (why := obstacle(cfg)) is not None:
                alone.setdefault(why, []).append(i)
            else:
                alike.setdefault(kind_of(cfg), []).append(i)
        several = [members for members in alike.values() if len(members) > 1]
        found = [members for members in alike.values() if len(members) == 1]
        widest = [runs[max(members, key=lambda i: runs[i].d)] for members in several]
        memory = share(slots) if several else 0.0
        answers: Sequence[Need | str] = []
        try:
            answers = call(needs, widest) if several else []
        except ChildProcessError as error:  # each does what it can alone
            answers = [str(error)] * len(several)
        for members, need in zip(several, answers, strict=True):
            if isinstance(need, str):
                alone.setdefault(need, []).extend(members)
            elif slots[0].devices is None and need.flops > self.flops:
                why = f"a step of {need.flops:.1e} operations fills a core (hydra.launcher.flops)"
                alone.setdefault(why, []).extend(members)
            elif (most := int(min(self.size, (memory - PROCESS) / (RUN + need.memory)))) < 2:
                alone.setdefault("there is no room for two at once", []).extend(members)
            else:
                n = max(-(-len(members) // most), min(len(slots), len(members) // 2))  # groups
                found += [members[k::n] for k in range(n)]
        if single := [i for members in found if len(members) == 1 for i in members]:
            alone["no other is left that differs in numbers alone"] = single
        for why, members in alone.items():
            say(f"[cyan]alone[/cyan]    {len(members)} of {len(runs)} runs: {escape(why)}")
        return [members for members in found if len(members) > 1]


@final
class Group(Task):
    """Runs that are trained as one. What this leaves, also undone though nothing ended it, is to be a job of its own.

    Args:
        runs: by the numbers of their cells
        steps: see `Packed`
    """

    def __init__(self, sweep: Sweep, runs: Mapping[int, Run], steps: int) -> None:
        self.sweep, self.runs, self.steps = sweep, runs, steps
        self.open = list(runs)  # that have not ended here, nor been left
        self.before: dict[int, dict[str, Any]] = {}
        self.told: Connection | None = None

    def ready(self) -> bool:
        return True

    def start(self, slot: Slot) -> Worker:
        first, *_ = runs = list(self.runs.values())
        assert self.sweep.server is not None
        self.before = {i: record.read(self.sweep.cells[i].folder) or {} for i in self.runs}
        first.log.parent.mkdir(parents=True, exist_ok=True)  # where it says what is no run's affair
        self.told, its = Pipe(duplex=False)
        with its:
            engine = first.config.engine  # of all
            arguments = runs, 0 if engine._target_.endswith(".Compiled") else self.steps, engine.cache, its
            process = self.sweep.server.start(work, arguments, first.log, job.environment(slot.devices, slot.threads))
        for i in self.runs:
            self.sweep.board.start(i, f"{slot}, one of {len(runs)} that are packed")
        return process

    def look(self, status: int | None) -> list[Task]:
        board, members, left = self.sweep.board, list(self.runs), list[int]()
        assert self.told is not None
        for k, why in received(self.told):
            board.leave(i := members[k], f"not packed, as {why}")
            left.append(i)
        for i in (i for i in self.open if i not in left):
            # BUSY: another host has taken over one of them; the others go on as jobs
            how = outcome(self.sweep.cells[i], self.before[i], None if status == record.BUSY else status)
            if how is not None:
                board.end(i, how)
        self.open = [i for i in self.open if i in board.running and i not in left]
        if status is not None:
            for i in self.open:
                board.running.pop(i)
            left += self.open
        return [Single(self.sweep, i) for i in left]


def work(runs: Sequence[Run], steps: int, cache: str | None, unpacked: Connection) -> int:
    """What the process of a group does: see `together.work`."""
    from vae_lab.launch import together  # torch

    return together.work(runs, steps, cache, unpacked)


def received(told: Connection) -> Iterator[tuple[int, str]]:
    """What has been sent, so far."""
    with suppress(EOFError):  # its process has ended
        while told.poll():
            yield told.recv()


def outcome(cell: Cell, before: Mapping[str, Any], status: int | None) -> Outcome | None:
    """How a run of a group has ended, given what its record said before and its process's exit status (None: it goes
    on); None: it has not, or not there."""
    known = record.read(cell.folder) or {}
    state = known.get("state") if known != before else None
    if state == "failed":
        return job.outcome(cell.folder, 1)
    if state == "finished" or (state == "partial" and known["error"]):  # a study has ended it
        return job.outcome(cell.folder, 0)
    return job.outcome(cell.folder, status) if status else None


def described(cfg: DictConfig, cell: Cell, config: DictConfig, inherited: list[str]) -> Run:
    """The run that `cfg` describes, a cell of the sweep that Hydra has composed `config` for."""
    cfg.paths.run = cell.folder
    cfg.wait = False  # the others would wait too; the pool waits
    if cfg.logger and "settings" in cfg.logger:
        with open_dict(cfg):
            cfg.logger.settings.reinit = "create_new"  # each run of the process has a W&B run of its own
    alone: Any = OmegaConf.create({"hydra": pickle.loads(pickle.dumps(config.hydra))})  # a quicker copy than deepcopy's
    OmegaConf.set_readonly(alone.hydra, False)
    alone.hydra.overrides.task = list(cell.overrides)
    alone.hydra.mode = "RUN"
    alone.hydra.runtime.output_dir = cell.folder
    return Run(cfg, alone, job.command([*inherited, *cell.overrides]), Path(cell.folder).absolute() / job.LOG)


def obstacle(cfg: DictConfig) -> str | None:
    """Why a run is trained alone, whatever the others are."""
    trainer = cfg.trainer
    if cfg.engine._target_.endswith(".Eager"):
        return "engine=eager"
    if cfg.encoder._target_.endswith(".Free"):
        return "encoder=free has parameters of single data"
    if trainer.precision not in (32, "32", "32-true"):
        return f"trainer.precision={trainer.precision}"
    if trainer.get("num_nodes", 1) != 1 or trainer.devices not in ("auto", 1) or trainer.strategy not in ("auto",):
        return "each has several processes"
    return None


def kind_of(cfg: DictConfig) -> str:
    """Equal for runs that may be trained as one."""
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict)
    for key in (*FREE, "d") if unused_d(cfg) else FREE:
        *above, name = key.split(".")
        node: Any = plain
        for part in above:
            node = node[part]
        node.pop(name, None)
    for key in ASIDE:
        plain.pop(key, None)
    plain["callbacks"].pop("pruning", None)
    for group in FLOATS:
        node, named = plain[group], hints.floats(group)
        for key, v in node.items():
            if isinstance(v, float) or (type(v) is int and (node["_target_"], key) in named):
                node[key] = "float"
    return json.dumps(plain, sort_keys=True, default=str)


def unused_d(cfg: DictConfig) -> bool:
    """Whether a latent dimension without weights and noise does nothing, so that d may differ: where the KL is in
    closed form (16), and all of it counts. `Stack` tries whether it is so."""
    objective = cfg.objective
    elbo = objective._target_.endswith(".Elbo") and (objective.kl, objective.gradient) == ("analytic", "plain")
    plain = cfg.posterior._target_.endswith(".Diagonal") and cfg.prior._target_.endswith(".StandardNormal")
    return elbo and plain and not objective.free_bits


def needs(found: Sequence[DictConfig]) -> list[Need | str]:
    """What each of these runs takes; why its step could not be made."""
    from vae_lab.commands import check  # torch

    application.register_resolvers()
    answers = list[Need | str]()
    for cfg in found:
        try:
            answers.append(Need(*check.need(cfg)))
        except Exception as error:
            answers.append(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    return answers
