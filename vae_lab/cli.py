"""The command line: `vae-lab train d=8` is `python scripts/train.py d=8`.

What Hydra can see by itself (help, unknown groups, options and keys) is answered without importing torch; a user's
mistake is one line on standard error, never a traceback.
"""

import importlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
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

from vae_lab import hints
from vae_lab.checks import closest
from vae_lab.runs import identity, record, sweeps

if TYPE_CHECKING:
    import wandb

COMMANDS = {
    "train": "train a VAE and show what it learned",
    "evaluate": "score a finished run on held-out data",
    "oracle ppca": "what the best linear VAE reaches, exactly and before any training; and its weights",
    "oracle check": "prove the equations of the note: each measured, and held against its exact value",
    "oracle schematic": "draw a run's model: the note's Figure 1 with its shapes and classes",
    "oracle naive_mc": "why sampling the prior (1) fails as d grows",
    "oracle free_phi": "what free phi_i cost (6): data left untouched, and the time of a refit",
    "wandb_workspace": "save views of a W&B project, and a report of its runs",
}
"""One or two words, and what they do; `oracle ppca` is `conf/oracle_ppca.yaml` and `commands/oracle_ppca.py`."""

RUNS = {
    "runs ls": "list runs, their states and what tells them apart: 'runs ls d=8 likelihood.s2<0.1 state=failed'",
    "runs show": "all that is known of runs",
    "runs rm": "remove runs",
    "runs retry": "give the commands of failed and partial runs again",
    "runs watch": "follow what is running, from any terminal",
}
"""Those of `commands/runs.py`, which take filters and have no configuration."""

OWN = {
    "report": "compare runs: one page that opens anywhere, or a table: 'report outputs/ where=\"data=digits d=8\"'",
}
"""Those that take other words too, and read their keys from their YAML by themselves."""

ALL = COMMANDS | RUNS | OWN


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command that `argv` (default: the process's arguments) begins with; exits 1 on a user's mistake."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if "-sc" in argv or "--shell-completion" in argv:
        return _complete(argv)
    command = _command(argv)
    if command is None:
        return _usage(argv)
    arguments = argv[len(command.split()) :]
    if command in RUNS or command in OWN:
        return _without_hydra(command, arguments)
    if "--help" in arguments or "-h" in arguments:
        return print(hints.usage(command, COMMANDS[command]))
    try:
        hints.check(command, arguments)
    except ValueError as error:
        sys.exit(f"error: {error}")
    _run(command, arguments)


def _command(words: Sequence[str]) -> str | None:
    """The command that `words` begin with."""
    return next((name for name in ALL if list(words[: len(name.split())]) == name.split()), None)


def _usage(argv: Sequence[str]) -> None:
    """Lists the commands, or those that begin with the word given; exits 1 if the words are neither."""
    first = argv[0] if argv else ""
    inside = [name for name in ALL if name.split()[0] == first]
    lines = [f"  {name:17} {ALL[name]}" for name in inside or ALL]
    print("\n".join(["usage: vae-lab COMMAND [--help] [key=value ...]", "", "commands:", *lines]))
    words = [word for word in argv[: 2 if inside else 1] if word not in ("-h", "--help")]
    if len(words) > len(inside[:1]):
        wrong = " ".join(words)
        near = closest(wrong, ALL) or closest(wrong, {name.split()[0] for name in ALL})
        sys.exit(f"\n{wrong!r} is no command{near}")


def _without_hydra(command: str, arguments: Sequence[str]) -> None:
    module, *rest = command.split()
    try:
        status = importlib.import_module(f"vae_lab.commands.{module}").main(*rest, arguments)
    except ValueError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    if status:
        sys.exit(status)


def _run(command: str, arguments: Sequence[str]) -> None:
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR", "0") != "0"
    as_typed = sys.argv
    sys.argv = [sys.argv[0], *arguments]
    register_resolvers()
    try:
        with _environment("HYDRA_FULL_ERROR", "1"):  # Hydra raises what it finds wrong, instead of printing it
            task = _task(command, as_typed, wants_traceback)
            hydra.main(version_base="1.3", config_path=str(hints.CONF), config_name=hints.root(command))(task)()
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
    ) as error:  # ValueError: of a sweep, before its first job
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
        sys.argv = argv  # Lightning starts further processes of a run by repeating the command, as it was typed
        try:
            with _environment("HYDRA_FULL_ERROR", "1" if wants_traceback else "0"):
                return run(cfg)
        # ValueError: a mistake in the configuration; FloatingPointError: training that broke
        except (ValueError, FloatingPointError, record.Busy, HydraException, OmegaConfBaseException) as error:
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
    """The functions that our YAML files call; each imports what it needs only when it is called."""
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
    import wandb

    wandb.setup(_silent())
    return not wandb.login(prompt=False)


def _wandb_mode(offline: bool) -> str:
    if not isinstance(offline, bool):
        raise ValueError(f"logger.offline must be true or false, got {offline!r}")
    import wandb

    wandb.setup(_silent())
    return "offline" if offline else "online"


def _silent() -> "wandb.Settings":
    """What W&B has to say is said at the end of a run, in one line."""
    import wandb

    return wandb.Settings(silent=True)


def _complete(argv: Sequence[str]) -> None:
    """Tab completion: `eval "$(vae-lab -sc install=bash)"`. Hydra completes one application; we have one a command."""
    words = os.environ.get("COMP_LINE", "").split(" ")
    typed = [word for word in words[1:] if word]
    command = _command(typed)
    asks = any(a.startswith("query=") for a in argv)
    if asks and (command is None or len(words) < 2 + len(command.split())):
        # the commands' next words, given those before the one that is being typed
        before = words[1:-1]
        rest = [name.split()[len(before) :] for name in ALL if name.split()[: len(before)] == before]
        print("\n".join(dict.fromkeys(words[0] for words in rest if words)))
        return
    if command in RUNS:
        return
    if command in OWN:
        keys = hints.keys(command) - {"paths"} if asks else ()
        return print("\n".join(f"{key}=" for key in sorted(keys) if key.startswith(words[-1])))
    if command is not None:
        for word in command.split():
            words.remove(word)
        os.environ["COMP_LINE"] = " ".join(words)
        os.environ["COMP_POINT"] = str(len(os.environ["COMP_LINE"]))
    arguments = list(argv) if command is None else [a for a in argv if a not in command.split()]
    sys.argv = [sys.argv[0], *arguments]
    register_resolvers()
    root = hints.root(command or "train")
    hydra.main(version_base="1.3", config_path=str(hints.CONF), config_name=root)(lambda cfg: None)()


if __name__ == "__main__":
    main()
