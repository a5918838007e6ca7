"""The sweeper `optuna`: the cells of a sweep are the trials of a study, which the same command continues."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, final

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig
from rich.console import Console

from vae_lab.checks import number, one_of, whole
from vae_lab.launch import space
from vae_lab.launch.plan import plan, refuse
from vae_lab.runs import record, sweeps

if TYPE_CHECKING:
    import vae_lab.launch.study  # imports optuna

SAMPLERS, PRUNERS = ("tpe", "gp", "qmc", "nsga2"), ("none", "median", "hyperband")


@final
class Search:
    """Runs a study of Optuna's through a launcher, in batches of as many trials as run at a time.

    Args:
        study: its name; None: named by what is searched
        n_trials: in all, over all commands
        n_jobs: trials at a time; None: as many as the launcher has places
        sampler: tpe, gp, qmc or nsga2
        seed: of the sampler
        metrics: of a run's results, what is optimised; none: its best val/elbo
        directions: maximize or minimize, for each metric
        pruner: none, median or hyperband
        max_failure_rate: the share of `n_trials` that may fail before the study stops
    Raises:
        ValueError: for what is out of range, metrics of the test data, or a pruner of anything but val/elbo.
    """

    def __init__(
        self,
        study: str | None,
        n_trials: int,
        n_jobs: int | None,
        sampler: str,
        seed: int,
        metrics: Sequence[str],
        directions: Sequence[str],
        pruner: str,
        max_failure_rate: float,
    ) -> None:
        where = "hydra.sweeper."
        if study is not None and (not study or "/" in study):
            raise ValueError(f"{where}study must be a name for a file, or null, got {study!r}")
        self.study, self.n_trials = study, whole(f"{where}n_trials", n_trials)
        self.n_jobs = n_jobs if n_jobs is None else whole(f"{where}n_jobs", n_jobs)
        self.sampler, self.seed = one_of(f"{where}sampler", sampler, SAMPLERS), whole(f"{where}seed", seed, 0)
        self.metrics = list(metrics)
        self.directions = [one_of(f"{where}directions", d, ("maximize", "minimize")) for d in directions]
        if len(self.directions) != (n := max(1, len(self.metrics))):
            raise ValueError(f"{where}directions must be {n}, one for each metric, got {len(self.directions)}")
        if hidden := [m for m in self.metrics if m.startswith("test/")]:
            raise ValueError(f"{where}metrics must not be of the test data, which choose nothing, got {hidden[0]}")
        self.pruner = one_of(f"{where}pruner", pruner, PRUNERS)
        if pruner != "none" and (self.metrics or self.directions != ["maximize"]):
            raise ValueError(f"{where}pruner must be none, except where val/elbo is maximized, got {pruner!r}")
        self.max_failure_rate = number(f"{where}max_failure_rate", max_failure_rate, least=0.0, most=1.0)

    def run(self, config: DictConfig, launcher: Launcher, arguments: Sequence[str]) -> list[JobReturn]:
        """Runs trials until there are `n_trials` in all; what the launcher returned for each.

        Raises:
            ValueError: before the first trial, if the search makes no sense, or another process runs the study; later,
                if too many trials failed.
        """
        try:
            from vae_lab.launch.study import Goal, Study
        except ModuleNotFoundError as error:
            if error.name != "optuna":
                raise
            raise ValueError("hydra/sweeper=optuna needs the package optuna: pip install 'vae-lab[optuna]'") from None

        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        axes, fixed = space.split(parser.parse_overrides(list(arguments)))
        if not axes:
            raise ValueError("nothing is searched: give a key several values, as in 'd=choice(2,8)'")
        origin = space.overrides(fixed, {axis.key: space.first(axis) for axis in axes})
        if config.get("check"):
            return list(launcher.launch([origin], 0))
        refuse(cells := plan(config, [origin], build=False))
        outputs = Path(config.paths.outputs).absolute()
        goal = Goal(self.metrics, self.directions)
        study = Study(outputs, self.study, axes, fixed, cells[0].fingerprint, goal, self.sampler, self.seed)
        returned: list[JobReturn] = []
        lock = outputs / f".{study.name}"
        try:
            with record.claim(lock), sweeps.named(study.name, [axis.key for axis in axes]):
                study.requeue()
                if len(study.ended()) < self.n_trials:
                    refuse(plan(config, [origin]))  # values out of range too, before the first trial
                while (left := self.n_trials - len(study.ended())) > 0:
                    returned += self.batch(study, min(left, self.n_jobs or slots(launcher, config)), config, launcher)
                    study.requeue()
                    self.judge(study, interrupted=len(study.ended()) == self.n_trials - left)
        except record.Busy as error:
            raise ValueError(f"study {study.name} is being run by {str(error).rpartition(' by ')[2]}") from error
        finally:
            record.tidy(lock)
        study.show(Console())
        return returned

    def batch(
        self, study: "vae_lab.launch.study.Study", n: int, config: DictConfig, launcher: Launcher
    ) -> list[JobReturn]:
        """Runs the next `n` trials."""
        proposals = study.propose(n)
        asked = [[*p.overrides, *self.pruning(study.journal, study.name, p.trial.number)] for p in proposals]
        cells = plan(config, asked)
        good = [i for i, cell in enumerate(cells) if not cell.error]
        for proposal, cell in zip(proposals, cells, strict=True):
            if cell.error:
                study.fail(proposal.trial, cell.error)
            else:
                proposal.trial.set_user_attr("run", Path(cell.folder).name)
        returned = launcher.launch([asked[i] for i in good], proposals[good[0]].trial.number) if good else []
        for i in good:
            study.settle(proposals[i].trial, Path(cells[i].folder))
        return list(returned)

    def judge(self, study: "vae_lab.launch.study.Study", interrupted: bool) -> None:
        """Raises ValueError if the study cannot go on."""
        if interrupted:
            raise ValueError(f"study {study.name} was interrupted; the same command goes on with it")
        failed = study.failed()
        if len(failed) > self.max_failure_rate * self.n_trials:
            study.show(Console())
            raise ValueError(
                f"study {study.name} has stopped: {len(failed)} of {self.n_trials} trials failed, more than "
                f"hydra.sweeper.max_failure_rate={self.max_failure_rate:g} allows; "
                f"the last one: {failed[-1].user_attrs.get('error')}"
            )

    def pruning(self, journal: Path, study: str, trial: int) -> list[str]:
        """The overrides that let a trial's run report to its study, and be ended by it."""
        if self.pruner == "none":
            return []
        quoted = QuotedString(str(journal), Quote.single).with_quotes()
        values = {"_target_": "vae_lab.callbacks.Pruning", "journal": quoted, "study": study, "trial": trial}
        return [f"+callbacks.pruning.{key}={value}" for key, value in (values | {"pruner": self.pruner}).items()]


def slots(launcher: Launcher, config: DictConfig) -> int:
    """How many jobs a launcher runs at a time; raises ValueError for one that has no fixed number of places."""
    for place in vars(launcher).values():
        if hasattr(place, "slots"):
            return len(place.slots(config))
        if hasattr(place, "launch"):
            name = config.hydra.runtime.choices["hydra/launcher"]
            raise ValueError(f"hydra.sweeper.n_jobs, the trials at a time, must be given for hydra/launcher={name}")
    return 1  # Hydra's own
