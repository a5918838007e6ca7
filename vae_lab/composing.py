"""Hydra composes the configuration of a command: what `hydra.main` does, in less than half the time."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import hydra
from hydra import initialize_config_dir
from hydra._internal import defaults_list
from hydra.core.default_element import InputDefault
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from vae_lab import hints

MULTIRUN = ("-m", "--multirun")

Task = Callable[[DictConfig], float | None]


def main(command: str, task: Task) -> None:
    """Hydra's own: it reads the process's arguments."""
    hydra.main(version_base="1.3", config_path=str(hints.CONF), config_name=hints.root(command))(task)()


def run(command: str, arguments: Sequence[str], task: Task) -> None:
    """Runs a task with the configuration of a command, or a sweep of it.

    `main` composes twice, first only to see whether `hydra.mode` makes a sweep of the run. Here -m and the files tell,
    unless Hydra is asked for more than a run or a sweep.
    """
    name, overrides = hints.root(command), [word for word in arguments if word not in MULTIRUN]
    is_sweep = len(overrides) < len(arguments)
    is_known = is_sweep or not (any("hydra" in word for word in overrides) or hints.sweeps())
    with quick():
        if not is_known or any(word.startswith("-") for word in overrides):
            # Hydra takes overrides from one side of -m only
            sys.argv = [sys.argv[0], *sorted(arguments, key=lambda word: word not in MULTIRUN)]
            return main(command, task)
        with initialize_config_dir(str(hints.CONF), job_name=name, version_base="1.3"):
            asked = GlobalHydra.instance().hydra
            assert asked is not None
            if is_sweep:
                asked.multirun(name, task, [*overrides, "hydra.mode=MULTIRUN"])
            else:
                asked.run(name, task, [*overrides, "hydra.mode=RUN"])


@contextmanager
def quick() -> Iterator[None]:
    """Whatever is composed meanwhile takes Hydra four fifths of the time, and comes to the same.

    For each file it lists anew which options are chosen, only because a defaults list may interpolate them; few do. A
    version of Hydra that has no function of this name stays as it is.
    """
    name = "_create_interpolation_map"
    if (ordinary := getattr(defaults_list, name, None)) is None:
        yield
        return

    def choices(overrides: object, defaults: Sequence[InputDefault], *more: object) -> DictConfig | None:
        return ordinary(overrides, defaults, *more) if any(d.is_interpolation() for d in defaults) else None

    setattr(defaults_list, name, choices)
    try:
        yield
    finally:
        setattr(defaults_list, name, ordinary)
