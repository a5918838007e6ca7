"""Hydra composes the configuration of a command: what `hydra.main` does, in less than half the time."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from types import ModuleType
from typing import Any, TextIO, final

import hydra
import yaml
from hydra import initialize_config_dir
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.default_element import InputDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig
from omegaconf import _utils as omegaconf_utils
from omegaconf import base as omegaconf_base

from vae_lab import hints
from vae_lab.composed import Composed, Parsed

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
                with recalled(arguments):
                    asked.multirun(name, task, [*overrides, "hydra.mode=MULTIRUN"])
            else:
                asked.run(name, task, [*overrides, "hydra.mode=RUN"])


@contextmanager
def quick() -> Iterator[None]:
    """Whatever is composed meanwhile takes Hydra two thirds of the time, or a third if it was before; it is the same.

    For each file Hydra lists anew which options are chosen, only because a defaults list may interpolate them; few do.
    OmegaConf reads YAML in Python, and parses an interpolation each time that it is looked at. What a version of them
    has no function of this name for stays as it is.
    """
    before = Composed(hints.CONF)
    with (
        _replaced(omegaconf_base.Container, "_evaluate_custom_resolver", before.watched),
        _replaced(ConfigLoaderImpl, "_process_config_searchpath", before.searched),
        _replaced(defaults_list, "_create_defaults_list", before.chosen),
        _replaced(ConfigLoaderImpl, "_compose_config_from_defaults_list", before.merged),
        _replaced(defaults_list, "_create_interpolation_map", _asked_for),
        _replaced(omegaconf_utils, "get_yaml_loader", _in_c),
        _replaced(omegaconf_base, "parse", lru_cache(maxsize=1024)),  # a parsed interpolation never changes
    ):
        yield


@contextmanager
def recalled(arguments: Sequence[str]) -> Iterator[None]:
    """What Hydra parses meanwhile is kept for when the same command is typed again."""
    before = Parsed(arguments)
    with _replaced(OverridesParser, "parse_rule", before.parsed):
        yield
    before.keep()


@contextmanager
def _replaced(owner: ModuleType | type, name: str, better: Callable[[Any], Any]) -> Iterator[None]:
    """A function of a module or class is meanwhile what `better` makes of it."""
    if (ordinary := getattr(owner, name, None)) is None:
        yield
        return
    setattr(owner, name, better(ordinary))
    try:
        yield
    finally:
        setattr(owner, name, ordinary)


def _asked_for(ordinary: Callable[..., DictConfig]) -> Callable[..., DictConfig | None]:
    def choices(overrides: object, defaults: Sequence[InputDefault], *more: object) -> DictConfig | None:
        return ordinary(overrides, defaults, *more) if any(d.is_interpolation() for d in defaults) else None

    return choices


def _in_c(ordinary: Callable[[], type[yaml.SafeLoader]]) -> Callable[[], type]:
    """What the ordinary loader of YAML reads, in C where PyYAML has it; mistakes are told in the ordinary words."""
    if not yaml.__with_libyaml__:
        return ordinary
    slow = ordinary()
    own = {name: getattr(slow, name) for name in ("yaml_constructors", "yaml_implicit_resolvers")}
    fast: Callable[[TextIO | str], yaml.CSafeLoader] = type("Fast", (yaml.CSafeLoader, slow), own)

    @final
    class Loader:
        """What `yaml.load` asks of a loader."""

        def __init__(self, stream: TextIO | str) -> None:
            self.stream = stream

        def get_single_data(self) -> object:
            try:
                return fast(self.stream).get_single_data()
            except yaml.YAMLError:
                if not isinstance(self.stream, str):
                    self.stream.seek(0)
                return slow(self.stream).get_single_data()

        def dispose(self) -> None:
            pass

    return lambda: Loader
