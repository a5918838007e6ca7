"""The command line: `vae-lab train d=8` is `python scripts/train.py d=8`.

What the YAML files tell by themselves (help, unknown groups, options and keys) is answered without importing Hydra, and
what Hydra can see without torch; a user's mistake is one line on standard error, never a traceback.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vae_lab import garbage, hints
from vae_lab.checks import closest

if TYPE_CHECKING:
    from vae_lab.application import TOLD as TOLD
    from vae_lab.application import explain as explain
    from vae_lab.application import register_resolvers as register_resolvers

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
    with garbage.spared():
        from vae_lab import application  # Hydra

        application.run(command, arguments)


def __getattr__(name: str) -> object:
    """What takes Hydra is imported on first use, so that help and `runs` are answered at once."""
    if name in ("TOLD", "explain", "register_resolvers"):
        from vae_lab import application

        return getattr(application, name)
    raise AttributeError(f"module 'vae_lab.cli' has no attribute {name!r}")


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
    from vae_lab import application

    application.complete(command or "train", arguments)


if __name__ == "__main__":
    main()
