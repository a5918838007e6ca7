"""Who makes a run's optimiser steps. The results are the same but for rounding, and any may continue another's run."""

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import final

import torch
from torch import Tensor
from torch.fx import GraphModule

from vae_lab.checks import whole
from vae_lab.engine.elementary import quickened
from vae_lab.engine.products import factors, quickest
from vae_lab.engine.step import Advance, Made, Noises, Step, Stepped, Stepper, Steps, Work, lagging
from vae_lab.interfaces import Block

CACHE = "TORCHINDUCTOR_CACHE_DIR"

Call = Callable[..., Sequence[Tensor]]
"""A graph that can be called."""


class Engine(ABC):
    """Who makes the optimiser steps."""

    seconds: float = 0.0
    """Spent on compiling."""

    @abstractmethod
    def start(self, work: Work, eager: Stepper) -> Steps:
        """What makes the steps of `work`, whose state is what it is when this is called.

        Args:
            eager: makes a step one operation after another
        """


@final
class Eager(Engine):
    """One operation after another, as they are written."""

    def start(self, work: Work, eager: Stepper) -> Steps:
        return OneByOne(eager)


@final
class Compiled(Engine):
    """Each step is one compiled function, from the batch to the moved weights, by torch's Inductor: on the CPU by way
    of C++, on a GPU by Triton and as one CUDA graph. What cannot be compiled is made eagerly, and said so, as is an
    epoch's smaller last batch.

    A part's values in Python (numbers, strings) are those of the beginning; where they change from step to step,
    nothing is compiled, and once they have changed, or an option of the optimiser, the steps are made eagerly.

    Args:
        cache: the folder that keeps what is compiled for later runs; None: TORCHINDUCTOR_CACHE_DIR where that is set,
            else one in the user's cache folder
        compiler: a graph and the tensors that it is given -> its compiled form
    """

    def __init__(self, cache: str | None, compiler: Callable[[GraphModule, list[Tensor]], Call] | None = None) -> None:
        self.cache, self.compiler = cache, compiler or inductor
        self.seconds = 0.0

    def start(self, work: Work, eager: Stepper) -> Steps:
        if work.obstacle is not None:
            work.tell(f"engine: eager, as {work.obstacle}")
            return OneByOne(eager)
        start = perf_counter()
        try:
            with cache_folder(self.cache):
                if self.compiler is inductor:
                    check_compiler(work.batch.x.device)
                lagging(work)
                step = Step(work)
                graph = step.graph()
                library = quickest(factors(graph))
                with torch.no_grad():  # the graph has the gradient's computation in it
                    call = self.compiler(graph, [*step.held.values(), *step.given.values()])
        except Exception as error:  # whatever it is, the run can be made
            reason = str(error) if isinstance(error, NotImplementedError) else f"{type(error).__name__}: {error}"
            work.tell(f"engine: eager, as compiling is not possible: {' '.join(reason.split())[:400]}")
            return OneByOne(eager)
        self.seconds = perf_counter() - start
        work.tell(f"engine: compiled, in {self.seconds:.1f} s")
        return CompiledSteps(step, call, library, eager, work)


@final
class Auto(Engine):
    """Compiled where a run is long enough to repay that, else eager.

    It goes by the number of steps of the whole run, and neither by what is left of them nor by what takes how long
    here and now: so the same command does the same, bit by bit, also when it continues.

    Args:
        steps: from how many on; on a CPU a compiled step was found to be about a millisecond shorter, and compiling
            to take some ten seconds the first time, one or two when it was done before
        cache: see `Compiled`
    """

    def __init__(self, steps: int, cache: str | None) -> None:
        self.steps, self.compiled = whole("steps", steps), Compiled(cache)

    def start(self, work: Work, eager: Stepper) -> Steps:
        if work.steps < self.steps:
            work.tell(f"engine: eager, as compiling repays from {self.steps:,} steps on, and these are {work.steps:,}")
            return OneByOne(eager)
        made = self.compiled.start(work, eager)
        self.seconds = self.compiled.seconds
        return made


@final
class OneByOne:
    """Makes the steps of a block by one that makes a step."""

    def __init__(self, step: Stepper) -> None:
        self.step = step

    def __call__(self, block: Block, eps: Noises, advance: Advance, norms: Collection[int]) -> Made:
        found = list[Stepped]()
        for k, (batch, noise) in enumerate(zip(block, eps, strict=True)):
            found.append(self.step(batch, noise, k in norms))
            advance()
        return joined(found)


@final
class CompiledSteps:
    """Makes steps by a compiled `Step`; those of another batch size eagerly."""

    def __init__(
        self, step: Step, call: Call, library: AbstractContextManager[None], eager: Stepper, work: Work
    ) -> None:
        self.step, self.library, self.eager, self.t, self.tell = step, library, eager, work.taken, work.tell
        self.left = False  # for eager steps
        self.held, self.B = list(step.held.values()), len(work.batch.x)
        self.call = Replay(call, self.held) if work.batch.x.device.type == "cuda" else call
        work.optimizer.zero_grad()
        work.optimizer._opt_called = True  # type: ignore[attr-defined]  # schedules warn of steps that they do not see

    def __call__(self, block: Block, eps: Noises, advance: Advance, norms: Collection[int]) -> Made:
        figures, why = self.step.ahead(self.t, 0 if self.left else block.n // self.B, advance)
        self.t, full = self.t + len(figures), len(figures)
        if why is not None and not self.left:
            self.left = True
            self.tell(f"engine: eager from step {self.t + 1} on, as {why}")
        some, rest = block.at(full)
        found = list[Stepped]()
        if full:
            with torch.no_grad(), self.library:
                for numbers, batch, noise in zip(self.step.numbers(figures).unbind(), some, eps, strict=False):
                    given = (numbers, *(v for v in batch if v is not None), noise)
                    found.append(Stepped(*self.call(*self.held, *given)))
        for k, (batch, noise) in enumerate(zip(rest, eps[full:], strict=True), full):
            self.t += 1
            found.append(self.eager(batch, noise, k in norms))
            advance()
        return joined(found)


def joined(steps: Sequence[Stepped]) -> Made:
    """What is known of all the steps."""
    terms, norms = zip(*steps, strict=True)
    return Made(torch.cat(terms, dim=1), terms[0].shape[1], norms)


@final
class Replay:
    """A compiled function as a CUDA graph: the first call runs it, the second records it, and from then on all its
    kernels are launched as one."""

    def __init__(self, call: Call, held: list[Tensor]) -> None:
        self.call, self.held = call, held
        self.graph: torch.cuda.CUDAGraph | None = None
        self.given: list[Tensor] = []

    def __call__(self, *values: Tensor) -> list[Tensor]:
        given = values[len(self.held) :]
        if not self.given:  # loads the kernels, which may not happen in a recording
            self.given = [v.to(self.held[0].device, copy=True) for v in given]
            return list(self.call(*self.held, *self.given))
        for mine, v in zip(self.given, given, strict=True):
            mine.copy_(v, non_blocking=True)
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            torch.cuda.synchronize()
            with torch.cuda.graph(self.graph):  # nothing is computed here
                self.found = list(self.call(*self.held, *self.given))
        self.graph.replay()
        return [v.clone() for v in self.found]  # the next replay writes into the same memory


def inductor(graph: GraphModule, given: list[Tensor]) -> Call:
    """A graph compiled by torch's Inductor, without Dynamo: its guards would take a third of a small model's step."""
    from torch._inductor import compile, cpu_vec_isa  # takes a second to import

    # random numbers that a part draws are to be those of the eager step
    options: dict[str, bool | str] = {"fallback_random": True}
    if given[0].device.type != "cpu":
        return compile(graph, [*given], options=options)
    options |= {
        "cpp_wrapper": True,
        "layout_optimization": False,  # it costs convolutions more than it wins
        # polynomials take half the instructions where a product and a sum are one
        "cpp.enable_floating_point_contract_flag": "fast",
    }
    graph = quickened(graph)
    try:  # a CPU tells its instructions; whether the C++ compiler knows them, it takes a second to find out
        call = compile(graph, [*given], options=options | {"cpp.vec_isa_ok": True})
    except Exception:
        cpu_vec_isa.valid_vec_isa_list.cache_clear()
        call = compile(graph, [*given], options=options)
    return bare(call, given)


def bare(call: Call, given: Sequence[Tensor]) -> Call:
    """What Inductor has compiled, without what torch has around it for inputs that share memory and for gradients: none
    are here, and that takes as long as a small product. Whether it does the same is tried, on copies."""
    inner = getattr(call, "current_callable", None)
    if inner is None or len({v.untyped_storage().data_ptr() for v in given}) < len(given):
        return call

    def direct(*values: Tensor) -> Sequence[Tensor]:
        return inner([*values])

    def tried(function: Call) -> list[Tensor]:
        values = [v.detach().clone() for v in given]
        with torch.random.fork_rng(devices=()):  # a part may draw from torch's own stream
            return [*function(*values), *values]

    wanted = tried(call)
    try:
        found = tried(direct)
    except Exception:  # another release of torch may have it take something else
        return call
    pairs = zip(wanted, found, strict=False)
    same = len(wanted) == len(found) and all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs)
    return direct if same else call


def check_compiler(device: torch.device) -> None:
    """Raises NotImplementedError where Inductor cannot compile for the device, saying what to install."""
    if device.type == "cuda":
        if find_spec("triton") is None:
            raise NotImplementedError("the package triton is not installed")
        return
    if device.type != "cpu":
        raise NotImplementedError(f"there is no compiler for {device.type}")
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception:
        raise NotImplementedError(
            "there is no C++ compiler: install g++ (apt install g++) or clang, or name one in CXX"
        ) from None


@contextmanager
def cache_folder(folder: str | None) -> Iterator[None]:
    """Inductor's cache is in `folder` for a while; None: where TORCHINDUCTOR_CACHE_DIR says, else in the user's cache
    folder, which outlives a restart of the machine."""
    before = os.environ.get(CACHE)
    # torch writes its default there when it is imported
    said = before if before and not before.startswith(f"{tempfile.gettempdir()}/torchinductor_") else None
    users = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "vae_lab" / "compiled"
    os.environ[CACHE] = str(Path(folder or said or users).expanduser())
    try:
        yield
    finally:
        os.environ.pop(CACHE)
        if before is not None:
            os.environ[CACHE] = before
