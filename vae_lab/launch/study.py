"""A study: Optuna proposes the cells of a sweep and learns from their results.

All that is known of it is in a journal, one file beside the runs, to which every process of the study appends.
"""

import hashlib
import json
import math
import os
import random
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, final

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, QMCSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.markup import escape

from vae_lab.launch.space import Axis, Choice, Steps, overrides
from vae_lab.runs import record

VALUE = "val/elbo"
"""What a run's value is: the best of this metric."""


class Proposal(NamedTuple):
    """A trial that is to be run."""

    trial: optuna.Trial
    overrides: list[str]


class Goal(NamedTuple):
    """What is optimised: metrics of a run's results (none: its value), and the direction of each."""

    metrics: list[str]
    directions: list[str]


@final
class Study:
    """Proposes, until there are `n_trials` trials in all; killed and interrupted ones are proposed again.

    What is proposed depends on the seed and on the results so far, and so not on how often the study was interrupted.

    Args:
        outputs: the folder of the runs
        name: the study's; None: named by what is searched
        axes, fixed: what is searched, and the overrides that all trials share
        fingerprint: of the run with each axis at its first value; it stands for all that is not searched
        goal: what is optimised
        sampler, seed: tpe, gp, qmc or nsga2, and its seed
    Raises:
        ValueError: if the study called `name` has searched something else.
    """

    def __init__(
        self,
        outputs: Path,
        name: str | None,
        axes: Sequence[Axis],
        fixed: Sequence[str],
        fingerprint: str,
        goal: Goal,
        sampler: str,
        seed: int,
    ) -> None:
        self.axes, self.fixed, self.goal, self.sampler, self.seed = axes, fixed, goal, sampler, seed
        what = {"run": fingerprint, "axes": [list(axis) for axis in axes], "goal": list(goal)}
        text = json.dumps(what, sort_keys=True)
        self.name = name or f"study-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        self.journal = outputs / f"{self.name}.journal"
        outputs.mkdir(parents=True, exist_ok=True)
        self.study = opened(self.journal, self.name, goal.directions)
        if self.study.user_attrs.get("search", what) != json.loads(text):
            raise ValueError(
                f"study {self.name!r} has searched something else ({self.journal}): "
                "give the command that it was begun with, or another hydra.sweeper.study"
            )
        if "search" not in self.study.user_attrs:
            self.study.set_metric_names(goal.metrics or [VALUE])
            self.study.set_user_attr("search", json.loads(text))

    def propose(self, n: int) -> list[Proposal]:
        """The next `n` trials, which count as running from now on."""
        return [self._propose() for _ in range(n)]

    def _propose(self) -> Proposal:
        trials = self.study.get_trials(deepcopy=False)
        i = sum("again" not in trial.user_attrs for trial in trials)  # as many have been proposed, each counted once
        self.study.sampler = sampler(self.sampler, self.seed, i)
        trial = self.study.ask({axis.key: distribution(axis) for axis in self.axes})
        return Proposal(trial, overrides(self.fixed, trial.params))

    def requeue(self) -> None:
        """Has the trials proposed again that run no more: their runs go on where they stopped."""
        trials = self.study.get_trials(deepcopy=False)
        requeued = {trial.user_attrs.get("again") for trial in trials}
        for trial in trials:
            if trial.state == TrialState.RUNNING:
                if trial.number not in requeued:
                    self.study.enqueue_trial(trial.params, user_attrs={"again": trial.number})
                self.study.tell(trial.number, state=TrialState.FAIL)

    def ended(self) -> list[FrozenTrial]:
        """The trials that have ended, without those that were proposed again."""
        trials = self.study.get_trials(deepcopy=False)
        requeued = {trial.user_attrs.get("again") for trial in trials}
        return [trial for trial in trials if trial.state.is_finished() and trial.number not in requeued]

    def failed(self) -> list[FrozenTrial]:
        """Those of them that failed."""
        return [trial for trial in self.ended() if trial.state == TrialState.FAIL]

    def settle(self, trial: optuna.Trial, folder: Path) -> None:
        """Takes in what has become of the run in `folder`; one that was only interrupted stays to be requeued."""
        known = record.read(folder) or {}
        state, results = known.get("state"), known.get("results") or {}
        if state == "finished":
            found = [results.get(m) for m in self.goal.metrics] if self.goal.metrics else [known.get("value")]
            if all(isinstance(v, int | float) and math.isfinite(v) for v in found):
                self.study.tell(trial, [float(v) for v in found])  # type: ignore[arg-type]
            else:
                names = ", ".join(self.goal.metrics or [VALUE])
                self.fail(trial, f"{names}: not in the results, or not finite; there: {', '.join(sorted(results))}")
        elif "pruned" in self.study.get_trials(deepcopy=False)[trial.number].user_attrs:
            self.study.tell(trial, state=TrialState.PRUNED)
        elif state != "partial":
            self.fail(trial, str(known.get("error") or "ended without a result"))

    def fail(self, trial: optuna.Trial, why: str) -> None:
        """The trial has failed."""
        trial.set_user_attr("error", why)
        self.study.tell(trial, state=TrialState.FAIL)

    def show(self, console: Console) -> None:
        """Says how far the study is, which trials are the best, and how to see more."""
        ended = self.ended()
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        counts = [sum(trial.state == s for trial in ended) for s in states]
        words = [f"{n} {name}" for n, name in zip(counts, ("finished", "pruned", "failed"), strict=True) if n]
        console.print(f"study {self.name}: {len(ended)} trials ({', '.join(words) or 'none'})", highlight=False)
        best = self.best()
        if len(self.goal.directions) > 1 and best:
            console.print(f"Pareto front: {len(best)} of them", highlight=False)
        for trial in best:
            assert trial.values is not None
            pairs = zip(self.goal.metrics or [VALUE], trial.values, strict=True)
            values = "  ".join(f"{name} {value:.4f}" for name, value in pairs)
            where = " ".join(overrides([], trial.params))
            console.print(
                escape(f"best  trial {trial.number}  {values}  {where}  {trial.user_attrs.get('run', '')}"),
                soft_wrap=True,
                highlight=False,
            )
        journal = Path(os.path.relpath(self.journal))
        console.print(f"to see it: optuna-dashboard {journal}  (pip install optuna-dashboard)", soft_wrap=True)

    def best(self) -> list[FrozenTrial]:
        """The best trial, or the Pareto front, of those that have finished."""
        if not any(trial.state == TrialState.COMPLETE for trial in self.ended()):
            return []
        if len(self.goal.directions) == 1:
            return [self.study.best_trial]
        return sorted(self.study.best_trials, key=lambda trial: trial.values)


def opened(journal: Path, name: str, directions: Sequence[str]) -> optuna.Study:
    """The study in a journal, which is begun where there is none."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=ExperimentalWarning)
    mend(journal)
    storage = JournalStorage(JournalFileBackend(str(journal)))
    return optuna.create_study(storage=storage, study_name=name, directions=list(directions), load_if_exists=True)  # type: ignore[arg-type]


def mend(journal: Path) -> None:
    """Cuts off a journal's last line if a process died while it wrote it: else no line after it could be read."""
    lock = JournalFileSymlinkLock(str(journal))
    with suppress(FileNotFoundError):
        if _whole(journal):
            return
        lock.acquire()
        try:
            content = journal.read_bytes()
            os.truncate(journal, content.rfind(b"\n") + 1)
        finally:
            lock.release()


def _whole(journal: Path) -> bool:
    with open(journal, "rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def distribution(axis: Axis) -> BaseDistribution:
    """An axis in Optuna's words."""
    if isinstance(axis, Choice):
        return CategoricalDistribution(axis.values)
    if not isinstance(axis, Steps):
        return FloatDistribution(axis.low, axis.high, log=axis.log)
    if isinstance(axis.low, int) and isinstance(axis.high, int) and isinstance(axis.step, int):
        return IntDistribution(axis.low, axis.high, step=axis.step, log=axis.log)
    return FloatDistribution(axis.low, axis.high, step=axis.step)


def sampler(name: str, seed: int, i: int) -> BaseSampler:
    """What proposes trial i.

    Each trial has a generator of its own: one that began anew with each process would propose its first points again.
    """
    own = random.Random(f"{seed} {i}").getrandbits(32)
    make: dict[str, Callable[[], BaseSampler]] = {
        "tpe": lambda: TPESampler(seed=own),
        "gp": lambda: GPSampler(seed=own, warn_independent_sampling=False),
        "qmc": lambda: QMCSampler(  # one sequence, so one seed; the journal holds how far it has come
            scramble=True,
            seed=seed,
            independent_sampler=RandomSampler(own),
            warn_asynchronous_seeding=False,
            warn_independent_sampling=False,
        ),
        "nsga2": lambda: NSGAIISampler(seed=own),
    }
    return make[name]()
