"""A command of which Hydra composes the configuration: its run, and what its user is told of a mistake."""

import importlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import ModuleType

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vae_lab import composing, garbage, hints
from vae_lab.runs import identity, record, sweeps

TOLD = (ValueError, FloatingPointError, record.Busy, HydraException, OmegaConfBaseException)
"""What a run may end by that is the user's affair. ValueError: a mistake in the configuration; FloatingPointError:
training that broke."""


def run(command: str, arguments: Sequence[str]) -> None:
    """Runs a command; exits 1 on a user's mistake."""
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR", "0") != "0"
    as_typed = sys.argv
    register_resolvers()
    try:
        with _environment("HYDRA_FULL_ERROR", "1"):  # Hydra raises what it finds wrong, instead of printing it
            composing.run(command, arguments, _task(command, as_typed, wants_traceback))
    except _Told:
        sys.exit(1)
    except record.Preempted as stop:
        sys.exit(stop.status)
    except (KeyboardInterrupt, SystemExit) as stop:
        if not record.interrupted(stop):
            raise
        sys.exit(record.Preempted(signal.SIGINT).status)
    except (
        ValueError,
        HydraException,
        OmegaConfBaseException,
        *hints.UNREADABLE,
    ) as error:  # ValueError: of a sweep, before its first job; OSError: also of a folder that cannot be written to
        if wants_traceback:
            raise
        sys.exit(f"error: {explain(error, command, arguments)}")
    finally:
        sys.argv = as_typed


class _Told(Exception):
    """A job of a sweep failed and its user has been told why."""


def _task(command: str, argv: list[str], wants_traceback: bool) -> Callable[[DictConfig], float | None]:
    def task(cfg: DictConfig) -> float | None:
        run = importlib.import_module(f"vae_lab.commands.{hints.root(command)}").run
        garbage.heeded()
        sys.argv = argv  # Lightning starts further processes of a run by repeating the command, as it was typed
        try:
            with _environment("HYDRA_FULL_ERROR", "1" if wants_traceback else "0"):
                return run(cfg)
        except TOLD as error:
            if wants_traceback:
                raise
            sys.stdout.flush()
            print(f"error: {explain(error, command, [])}", file=sys.stderr, flush=True)
            if HydraConfig.get().mode is RunMode.RUN:
                sys.exit(record.BUSY if isinstance(error, record.Busy) else 1)
            raise _Told from error  # the sweep's other jobs go on

    return task


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """The environment variable `name` is `value` for a while."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def explain(error: Exception, command: str, arguments: Sequence[str]) -> str:
    """One message for what is wrong: where, what was given, what is allowed, and the closest valid name."""
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return hints.unknown_option(group, option, error.options)
    if isinstance(error, ConfigCompositionException) and (found := re.search(r"Could not override '(.+?)'", text)):
        given = next((a for a in arguments if a.lstrip("+~").split("=")[0] == found[1]), found[1])
        return hints.absent_key(command, given, found[1])
    if isinstance(error, OverrideParseException):
        return f"{error.override}: {text.splitlines()[0]}"
    if isinstance(error, InstantiationException) and isinstance(error.__cause__, ValueError):
        text = str(error.__cause__)  # a launcher's, or a sweeper's
    if found := re.search(r"Missing mandatory value: ([\w.]+)", text):
        return f"{found[1]} must be given"
    text = re.sub(r"^\w+ raised while resolving interpolation: |\s+full_key: .*|\s+object_type=.*", "", text)
    return " ".join(text.split()) or type(error).__name__


def register_resolvers() -> None:
    """The functions that YAML files call, Hydra's and ours; each imports what it needs only when it is called."""
    setup_globals()
    OmegaConf.register_new_resolver("run_name", identity.run_name, replace=True)
    OmegaConf.register_new_resolver("folder_name", identity.readable, replace=True)
    OmegaConf.register_new_resolver("run_folder", lambda *, _root_: _run_folder(_root_), replace=True)
    OmegaConf.register_new_resolver("fingerprint", lambda *, _root_: identity.fingerprint(_root_), replace=True)
    OmegaConf.register_new_resolver("sweep", lambda: os.environ.get(sweeps.NAME), replace=True)
    OmegaConf.register_new_resolver("swept", lambda: os.environ.get(sweeps.AXES, "").split(), replace=True)
    OmegaConf.register_new_resolver("array_shape", _array_shape, replace=True)
    OmegaConf.register_new_resolver("wandb_id", _wandb_id, replace=True)
    OmegaConf.register_new_resolver("wandb_offline", _wandb_offline, replace=True)
    OmegaConf.register_new_resolver("wandb_mode", _wandb_mode, replace=True)


def _run_folder(root: DictConfig) -> str:
    """The folder of the run that is being composed. A mistake in it is told where it is run, job by job of a sweep."""
    overrides = root.hydra.overrides.task if "hydra" in root else []
    try:
        found = identity.fingerprint(root)
    except (ValueError, OmegaConfBaseException):
        found = "wrong"
    return str(identity.folder(root.paths.outputs, overrides, found))


def _array_shape(root: str, key: str | None = None) -> list[int]:
    from vae_lab.data.arrays import array_shape

    try:
        return array_shape(root, key)
    except ValueError as error:
        raise ValueError(f"data.{error}" if str(error).startswith("root ") else f"data: {error}") from error


def _wandb_id(fingerprint: str) -> str:
    """A W&B run's id: the run's own, except under an agent of a W&B sweep, who waits for the run that it has named."""
    return os.environ.get("WANDB_RUN_ID", fingerprint) if "WANDB_SWEEP_ID" in os.environ else fingerprint


def _wandb_offline() -> bool:
    """Whether W&B has to be used offline: it has no credentials, or was told so."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode != "online"
    return not _wandb().login(prompt=False)


def _wandb_mode(offline: bool) -> str:
    if not isinstance(offline, bool):
        raise ValueError(f"logger.offline must be true or false, got {offline!r}")
    _wandb()
    return "offline" if offline else "online"


def _wandb() -> ModuleType:
    """W&B with all that its runs import. What it has to say is said at the end of a run, in one line."""
    import wandb

    with suppress(Exception):  # as `wandb.init` does it; but that comes after torch, when it takes four times as long
        import wandb.sdk.launch.inputs.internal
    wandb.setup(wandb.Settings(silent=True))
    return wandb


def complete(command: str, arguments: Sequence[str]) -> None:
    """Hydra's own tab completion of a command's words."""
    sys.argv = [sys.argv[0], *arguments]
    register_resolvers()
    composing.main(command, lambda cfg: None)
