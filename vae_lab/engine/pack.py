"""Runs that are trained together: each goes its own way, and their optimiser steps are made as one.

Each run is a fit of its own, by a Trainer of its own, in a greenlet of its own: it stands still where it has asked for
steps, until those of all have been made. So callbacks, checkpoints, logs and failures are each run's alone.
"""

import hashlib
import os
import platform
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from time import perf_counter
from typing import NamedTuple, final

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn
from torch.fx import GraphModule

from vae_lab.engine.engines import CACHE, Call, Engine, OneByOne, Replay, cache_folder, check_compiler, inductor
from vae_lab.engine.products import factors, quickest
from vae_lab.engine.stack import Asked, Stack
from vae_lab.engine.step import Advance, Made, Noises, Step, Stepper, Steps, Work, lagging
from vae_lab.interfaces import Block

Room = Callable[[], AbstractContextManager[None]]
"""What a run's code runs in: entered whenever the run goes on, left whenever it stands still."""


class Unpacked(Exception):
    """A run cannot be trained with the others, and why."""


class Due(NamedTuple):
    """Steps that were asked for, and where what is known of them goes."""

    asked: Asked
    found: list[Made]

    def at(self, k: int) -> tuple["Due", "Due"]:
        """The first k steps, and the rest."""
        (block, eps, figures), found = self.asked, self.found
        first, rest = block.at(k)
        return Due(Asked(first, eps[:k], figures[:k]), found), Due(Asked(rest, eps[k:], figures[k:]), found)


@final
class Pack:
    """Runs all of some runs, in one process.

    Args:
        steps: from how many optimiser steps on, of all runs together, their step is compiled, which takes some ten
            seconds; from a tenth as many where it was compiled before, and takes less than one
        cache: as of `Compiled`
        compiler: a graph and the tensors that it is given -> its compiled form
        attend: called between steps, as the process may have been told to stop
    """

    def __init__(
        self,
        steps: int = 0,
        cache: str | None = None,
        compiler: Callable[..., Call] = inductor,
        attend: Callable[[], None] = lambda: None,
    ) -> None:
        self.steps, self.cache, self.compiler, self.attend = steps, cache, compiler, attend
        self.members: list[Member] = []
        self.stack: Stack | None = None

    def add(self, run: Callable[["Member"], None], room: Room) -> None:
        """Takes in a run, which is to be trained by the engine that it is given."""
        self.members.append(Member(run, room))

    def run(self) -> None:
        """Runs all, to their ends."""
        for member in self.members:
            member.go_on()
        self.meet([member for member in self.members if member.offered is not None])
        together = [member for member in self.members if member.work is not None]
        while together:
            self.start(together)
            while 2 * len(together) > len(self.slots):
                for member in together:
                    if member.due is None:
                        member.go_on()
                together = [member for member in together if not member.over]
                self.attend()
                if not together:
                    return
                self.step(together)
                assert self.stack is not None
                self.stack.pull([self.slots[member] for member in together])
            # half of them are done: the others are stacked anew

    def meet(self, offered: Sequence["Member"]) -> None:
        """Lets the runs begin that wait in `join`, if they can be stacked."""
        works = [member.offered for member in offered if member.offered is not None]
        why = None if len(works) > 1 else "no other run is left that it could be packed with"
        if why is None:
            try:
                stack = Stack(works)
                if not known(stack.model):
                    stack.graph()
            except Exception as error:
                why = reason(error)
        for member in offered:
            member.refused, member.offered = why, None
            member.go_on()

    def start(self, together: Sequence["Member"]) -> None:
        """Stacks the runs and compiles their step; where they cannot be stacked, each makes its steps eagerly."""
        slots = {member: i for i, member in enumerate(together)}
        works = [member.work for member in together if member.work is not None]
        device, start = works[0].batch.x.device, perf_counter()
        try:
            stack = Stack(works)
            graph = stack.graph()
        except Exception as error:
            if self.stack is not None:
                raise  # in mid-training; what can be stacked can be stacked without some
            self.slots = slots
            for member in together:
                member.alone, member.said = True, f"not packed, as {reason(error)}"
            return
        call: Call = graph
        given, how = [*stack.held.values(), *stack.given.values()], "not compiled, as that would not repay"
        with cache_folder(self.cache), torch.no_grad():
            note = noted(graph, given)
            repays = self.steps / 10 if note.exists() else self.steps
            if sum(member.work.steps - member.t for member in together if member.work is not None) >= repays:
                try:
                    if self.compiler is inductor:
                        check_compiler(device)
                    call, seconds = self.compiler(graph, given), perf_counter() - start
                    how = f"compiled in {seconds:.1f} s"
                    for member in together:
                        member.seconds = seconds  # of all, and each one's own
                    note.parent.mkdir(parents=True, exist_ok=True)
                    note.touch()
                except Exception as error:
                    how = f"not compiled, as {reason(error)}"
        self.stack, self.slots, self.held = stack, slots, list(stack.held.values())
        self.call = Replay(call, self.held) if device.type == "cuda" else call
        self.library = quickest(factors(graph))
        for member in together:
            member.said = f"one of {len(together)} runs that are packed, {how}"

    def step(self, together: Sequence["Member"]) -> None:
        """Makes as many steps of each run as all have asked for."""
        stack, dues = self.stack, dict[int, Due]()
        assert stack is not None
        K = min(stack.most, *(len(member.due.asked.eps) for member in together if member.due is not None))
        for member in together:
            due = member.due
            assert due is not None
            more = len(due.asked.eps) > K
            dues[self.slots[member]], member.due = due.at(K) if more else (due, None)
        stack.push(list(dues))
        with torch.no_grad(), self.library:
            made = [self.call(*self.held, *given) for given in stack.fill({i: due.asked for i, due in dues.items()})]
            terms = torch.stack([found for found, _ in made], dim=2).flatten(2)  # [N, k, K B]
            norms = torch.stack([norm for _, norm in made], dim=1)  # [N, K]
        for i, (asked, found) in dues.items():
            found.append(Made(terms[i, :, : asked.block.n], len(stack.batch.x), norms[i]))


@final
class Member(Engine):
    """The engine of a run that is trained with others."""

    def __init__(self, run: Callable[["Member"], None], room: Room) -> None:
        self.room = room
        self.seconds, self.alone, self.said = 0.0, False, ""
        self.offered: Work | None = None
        self.refused: str | None = None
        self.work: Work | None = None
        self.due: Due | None = None
        self.greenlet = greenlet(lambda: run(self))

    @property
    def over(self) -> bool:
        """Whether the run has ended, one way or the other."""
        return self.greenlet.dead

    def go_on(self) -> None:
        """Lets the run go on until it needs the others, or to its end."""
        with self.room():
            self.greenlet.switch()

    def wait(self) -> None:
        """Lets the others go on."""
        hub = getcurrent().parent
        assert hub is not None
        hub.switch()

    def join(self, work: Work) -> None:
        """Waits for the others, before the run has begun.

        Args:
            work: like that of `start`, so far as it is known
        Raises:
            Unpacked: if the run cannot be trained with the others.
        """
        if work.obstacle is not None:
            raise Unpacked(work.obstacle)
        try:
            Step(work)
        except NotImplementedError as error:
            raise Unpacked(str(error)) from error
        self.offered = work
        self.wait()
        if self.refused is not None:
            raise Unpacked(self.refused)

    def start(self, work: Work, eager: Stepper) -> Steps:
        if work.obstacle is not None:
            work.tell(f"engine: not packed, as {work.obstacle}")
            return OneByOne(eager)
        try:
            lagging(work)
            self.mine = Step(work)
        except NotImplementedError as error:
            work.tell(f"engine: not packed, as {error}")
            return OneByOne(eager)
        self.work, self.eager, self.t = work, OneByOne(eager), work.taken
        work.optimizer.zero_grad()
        work.optimizer._opt_called = True  # type: ignore[attr-defined]  # schedules warn of steps that they do not see
        self.wait()
        work.tell(f"engine: {self.said}")
        return self.eager if self.alone else self.ask

    def ask(self, block: Block, eps: Noises, advance: Advance, norms: Collection[int]) -> Made:
        """Has the steps made with those of the others; once something has changed that these share, it makes its own,
        to the run's end."""
        assert self.work is not None
        found = list[Made]()
        figures, why = self.mine.ahead(self.t, 0 if self.alone else len(eps), advance)
        self.t, k = self.t + len(figures), len(figures)
        if why is not None and not self.alone:
            self.alone = True
            self.work.tell(f"engine: eager from step {self.t + 1} on, as {why}")
        some, rest = block.at(k)
        if figures:
            self.due = Due(Asked(some, eps[:k], figures), found)
        while self.due is not None:
            self.wait()
        if k < len(eps):
            found.append(self.eager(rest, eps[k:], advance, [j - k for j in norms]))
        if len(found) == 1:
            return found[0]
        terms, size, all_norms = zip(*found, strict=True)
        return Made(torch.cat(terms, dim=1), size[0], [norm for norms in all_norms for norm in norms])


def known(model: nn.Module) -> bool:
    """Whether all parts are torch's or this package's own, whose operations can be traced; it takes time to try."""
    return all(type(part).__module__.partition(".")[0] in ("torch", "vae_lab") for part in model.modules())


def noted(graph: GraphModule, given: Sequence[Tensor]) -> Path:
    """The file that is there if a graph was compiled before, for tensors like these."""
    like = [(*v.shape, v.dtype, v.device.type) for v in given]
    device, cpu = given[0].device, torch.backends.cpu.get_cpu_capability()
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} {cpu}"
    said = f"{torch.__version__} {where} {like} {graph.code}"
    return Path(os.environ[CACHE], "vae_lab", hashlib.sha256(said.encode()).hexdigest())


def reason(error: Exception) -> str:
    """Why something is not possible, in a line."""
    said = str(error) if isinstance(error, NotImplementedError) else f"{type(error).__name__}: {error}"
    return " ".join(said.split())[:400]
