"""Runs that are trained together: each goes its own way, and their optimiser steps are made as one.

Each run is a fit of its own, by a Trainer of its own, in a greenlet of its own: it stands still where it has asked for
steps, until those of all have been made. So callbacks, checkpoints, logs and failures are each run's alone.
"""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from time import perf_counter
from typing import NamedTuple, final

import torch
from greenlet import getcurrent, greenlet
from jaxtyping import Float
from torch import Tensor

from vae_lab.engine.engines import Call, Engine, Replay, Stepper, cache_folder, check_compiler, inductor
from vae_lab.engine.stack import Asked, Stack
from vae_lab.engine.step import Step, Stepped, Work
from vae_lab.interfaces import Batch, Terms

Room = Callable[[], AbstractContextManager[None]]
"""What a run's code runs in: entered whenever the run goes on, left whenever it stands still."""


class Due(NamedTuple):
    """A step that was asked for, and where its results go."""

    asked: Asked
    stepped: Stepped


@final
class Pack:
    """Runs all of some runs, in one process.

    Args:
        steps: from how many optimiser steps on, of all runs together, their step is compiled; compiling takes some ten
            seconds the first time, and two or three when it was done before
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
        together = [member for member in self.members if member.work is not None]
        while together:
            self.start(together)
            while 2 * len(together) > len(self.slots):
                for member in together:
                    if not member.due:
                        member.go_on()
                together = [member for member in together if not member.over]
                self.attend()
                if not together:
                    return
                for _ in range(min(len(member.due) for member in together)):
                    self.step(together)
                assert self.stack is not None
                self.stack.pull([self.slots[member] for member in together])
            # half of them are done: the others are stacked anew

    def start(self, together: Sequence["Member"]) -> None:
        """Stacks the runs and compiles their step; where that cannot be done, each makes its steps eagerly."""
        self.slots = {member: i for i, member in enumerate(together)}
        works = [member.work for member in together if member.work is not None]
        device, start = works[0].batch.x.device, perf_counter()
        try:
            self.stack = stack = Stack(works)
            call: Call = stack.graph()
            how = "not compiled, as that would not repay"
            if sum(work.steps for work in works) >= self.steps:
                with cache_folder(self.cache), torch.no_grad():
                    if self.compiler is inductor:
                        check_compiler(device)
                    call = self.compiler(call, [*stack.held.values(), *stack.given.values()])
                how = f"compiled in {perf_counter() - start:.1f} s"
        except Exception as error:
            reason = str(error) if isinstance(error, NotImplementedError) else f"{type(error).__name__}: {error}"
            for member in together:
                member.alone, member.said = True, f"not packed, as {' '.join(reason.split())[:400]}"
            return
        self.held = list(stack.held.values())
        self.call = Replay(call, self.held) if device.type == "cuda" else call
        for member in together:
            member.said = f"packed with {len(together) - 1} other runs, {how}"

    def step(self, together: Sequence["Member"]) -> None:
        """Makes one step of each run."""
        stack = self.stack
        assert stack is not None
        dues = {self.slots[member]: member.due.popleft() for member in together}
        stack.fill({i: due.asked for i, due in dues.items()})
        with torch.no_grad():
            terms, norm = self.call(*self.held, *stack.given.values())
            for i, (_, stepped) in dues.items():
                stepped.terms.copy_(terms[i, :, : stepped.terms.shape[1]])
                assert stepped.norm is not None
                stepped.norm.copy_(norm[i])


@final
class Member(Engine):
    """The engine of a run that is trained with others."""

    def __init__(self, run: Callable[["Member"], None], room: Room) -> None:
        self.room = room
        self.seconds, self.alone, self.said = 0.0, False, ""
        self.work: Work | None = None
        self.due: deque[Due] = deque()
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

    def start(self, work: Work, eager: Stepper) -> Stepper:
        if work.obstacle is not None:
            work.tell(f"engine: not packed, as {work.obstacle}")
            return eager
        try:
            self.mine = Step(work)
        except NotImplementedError as error:
            work.tell(f"engine: not packed, as {error}")
            return eager
        self.work, self.t = work, work.taken
        work.optimizer.zero_grad()
        work.optimizer._opt_called = True  # type: ignore[attr-defined]  # schedules warn of steps that they do not see
        self.wait()
        work.tell(f"engine: {self.said}")
        return eager if self.alone else self.ask

    def ask(self, batch: Batch, eps: Float[Tensor, "V B d"], norm: bool) -> Stepped:
        """A step, whose results are there when `finish` has returned."""
        self.t += 1
        x = batch.x
        stepped = Stepped(x.new_empty(len(Terms._fields), len(x)), x.new_empty(()))
        self.due.append(Due(Asked(batch, eps, self.mine.figures(self.t)), stepped))
        return stepped

    def finish(self) -> None:
        while self.due:
            self.wait()
