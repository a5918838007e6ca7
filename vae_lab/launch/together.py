"""Training several runs in this process, their optimiser steps as one: what a group of `hydra/launcher=packed` does."""

import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from types import FrameType
from typing import IO

from hydra.core.hydra_config import HydraConfig

from vae_lab import application
from vae_lab.callbacks import Preemption
from vae_lab.callbacks.preemption import SIGNALS
from vae_lab.commands import machine, train
from vae_lab.commands.training import Together
from vae_lab.data.module import InMemory
from vae_lab.engine.pack import Member, Pack, Unpacked
from vae_lab.launch.packed import Run
from vae_lab.runs import record


def work(runs: Sequence[Run], steps: int, cache: str | None, unpacked: Connection) -> int:
    """Trains the runs, each as its own command would; the exit status, which is not 0 only if a signal ended them.

    Args:
        steps, cache: as of `Pack`
        unpacked: is sent the number of each run that cannot be trained with the others, and why; it has not begun
    """
    application.register_resolvers()
    machine.tune()
    told: list[int] = []
    preemptions = [Preemption(listens=False) for _ in runs]

    def note(number: int, frame: FrameType | None) -> None:
        told.append(number)
        attend()  # a run that cannot be stacked does not come back between its steps

    def attend() -> None:
        for preemption in preemptions if told else ():
            preemption.tell(told[0])

    pack, data = Pack(steps, cache, attend=attend), dict[str, InMemory]()
    for i, (run, preemption) in enumerate(zip(runs, preemptions, strict=True)):
        run.log.parent.mkdir(parents=True, exist_ok=True)
        log = run.log.open("a", buffering=1)
        log.write(f"$ {shlex.join(run.command)}\n")
        pack.add(partial(one, run, preemption, data, partial(leave, unpacked, i)), partial(room, run, log, note))
    pack.run()
    return record.Preempted(told[0]).status if told else 0


def leave(unpacked: Connection, i: int, why: str) -> None:
    """Leaves run i to the sweep, which may have been killed."""
    print(f"engine: not packed, as {why}: a job of its own", flush=True)
    with suppress(OSError):
        unpacked.send((i, why))


def one(
    run: Run, preemption: Preemption, data: dict[str, InMemory], leave: Callable[[str], None], engine: Member
) -> None:
    """Trains a run; what it fails of is in its log and its record, and no other run's affair."""
    try:
        train.run(run.config, Together(engine, preemption, data))
    except Unpacked as error:
        leave(str(error))
    except record.Preempted:
        pass
    except application.TOLD as error:
        print(f"error: {application.explain(error, 'train', [])}", flush=True)
    except Exception:
        traceback.print_exc()


@contextmanager
def room(run: Run, log: IO[str], note: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """What a run's code finds: its own log and arguments, and what Hydra knows of it. Signals are noted, whatever
    Lightning has meanwhile set."""
    before = sys.stdout, sys.stderr, sys.argv
    sys.stdout = sys.stderr = log
    sys.argv = ["vae-lab", *run.command[run.command.index("train") :]]
    HydraConfig.instance().cfg = run.hydra  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr, sys.argv = before
        for number in SIGNALS:
            signal.signal(number, note)
