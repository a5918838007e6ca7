"""`vae-lab runs ls|show|rm|retry`: what there is in `outputs`, read from the runs' own records. Needs no torch."""

import operator
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from rich.console import Console
from rich.table import Table

from vae_lab import hints, runs
from vae_lab.checks import closest, flag
from vae_lab.commands.tables import paths_list, plus_minus, results_table, shown
from vae_lab.runs import identity, record

USAGE = """usage: vae-lab runs {} [filter ...] [key=value ...]

A filter is a condition on what `config.yaml` or `run.json` says: d=8, d=2,8 (either), 'likelihood.s2<0.1',
likelihood=bernoulli, state=failed, 'test/elbo>-5', 'seconds>=60', host!=here; or a run's folder, or its fingerprint.
states: new, running, partial (stopped; the same command goes on), failed, finished.
old=true means the runs that force=true has moved aside, which are left out otherwise.

keys:
  paths.outputs=outputs  the folder of all runs
"""

OPTIONS: dict[str, dict[str, tuple[object, str]]] = {
    "ls": {},
    "show": {},
    "rm": {"yes": (False, "do not ask")},
    "retry": {"print": (False, "only print the commands")},
}
"""The keys of each command: what holds by default, and what they do."""


class Run(NamedTuple):
    """A run's folder, and what is known of it by name: configuration, record, metrics."""

    folder: Path
    config: dict[str, Any]  # flat
    record: dict[str, Any]
    facts: dict[str, Any]


def main(command: str, words: Sequence[str]) -> int:
    """Does `runs <command>` and returns the exit status.

    Raises:
        ValueError: for a key that no run has, a filter that makes no sense, or a run that is not there.
    """
    options = OPTIONS[command]
    if {"--help", "-h"} & set(words):
        lines = [f"  {f'{name}={str(value).lower()}':22} {what}" for name, (value, what) in options.items()]
        print("\n".join([USAGE.format(command).rstrip(), *lines]))
        return 0
    given = {name: value for name, (value, _) in options.items()} | {"paths.outputs": "outputs"}
    filters = []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in given:
            given[key] = value if key == "paths.outputs" else flag(key, yaml.safe_load(value))
        else:
            filters.append(word)
    everything = read(Path(str(given["paths.outputs"])))
    selected = select(everything, filters)
    if command == "ls":
        return ls(selected)
    if command == "show":
        return show(selected)
    if command == "rm":
        if not filters:
            raise ValueError(
                "runs rm needs filters, or runs: 'runs rm state=failed'; all of them: 'runs rm state!=new'"
            )
        return rm(selected, ask=not given["yes"])
    return retry(selected, only_print=bool(given["print"]))


# --- what there is


def read(outputs: Path) -> list[Run]:
    """The runs in `outputs` that have a record, by name."""
    options = {
        (group, hints.read(f"{group}/{option}").get("_target_")): option
        for group, names in hints.groups("train").items()
        for option in names
        if group not in ("experiment", "callbacks", "trainer")
    }
    return [_read(path.parent, options) for path in sorted(outputs.glob(f"*/{record.RECORD}"))]


def _read(folder: Path, options: dict[tuple[str, Any], str]) -> Run:
    known = record.read(folder) or {}
    try:
        nested = runs.read_config(folder)
    except ValueError:  # its process was killed before it was written
        nested = {}
    config = runs.flat(nested)
    for group, node in nested.items():
        if isinstance(node, dict) and "_target_" in node:
            config[group] = options.get((group, node["_target_"]), node["_target_"])
    config = {key: value for key, value in config.items() if not key.endswith("_target_")}
    own = {key: value for key, value in known.items() if not isinstance(value, dict | list)}
    old = re.search(r"\.old-\d+$", folder.name) is not None
    facts = config | (known.get("results") or {}) | own
    facts |= {"state": record.state(folder), "run": folder.name, "old": old}
    return Run(folder, config, known, facts)


# --- filters

ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def select(everything: Sequence[Run], filters: Iterable[str]) -> list[Run]:
    """The runs that meet every filter; any of those that are named."""
    named: list[Run] = []
    conditions: list[Callable[[Run], bool]] = []
    names, said_old = False, False
    for word in filters:
        found = re.fullmatch(r"([\w./-]+?)(!=|<=|>=|=|<|>)(.*)", word)
        if found and not (Path(word).is_dir() or any(word == run.folder.name for run in everything)):
            key, sign, value = found.groups()
            said_old |= key == "old"
            conditions.append(_condition(everything, key, sign, value))
        else:
            names = True
            named += _named(everything, word)
    chosen = named if names else [run for run in everything if said_old or not run.facts["old"]]
    return [run for run in chosen if all(condition(run) for condition in conditions)]


def _named(everything: Sequence[Run], word: str) -> list[Run]:
    name = Path(word).name
    found = [
        run
        for run in everything
        if run.folder.name == name or (run.facts.get("fingerprint") == word and not run.facts["old"])
    ]
    if not found:
        near = closest(name, [run.folder.name for run in everything])
        raise ValueError(f"{word}: no such run, and no filter{near}")
    return found


def _condition(everything: Sequence[Run], key: str, sign: str, text: str) -> Callable[[Run], bool]:
    """Whether a run's `key` is one of the values in `text`, or none of them, or less or more than the number there."""
    keys = {key for run in everything for key in run.facts}
    if everything and key not in keys:
        raise ValueError(f"{key}: no run has this key{closest(key, keys)}")
    if sign in ORDER:
        limit = _value(text)
        if not _is_number(limit):
            raise ValueError(f"{key}{sign}{text}: {text!r} is no number")
        return lambda run: _is_number(value := run.facts.get(key)) and ORDER[sign](value, limit)
    words = [text] if "[" in text else text.split(",")
    wanted = {_plain(_value(word)) for word in words}

    def one_of(run: Run) -> bool:
        value = run.facts[key]
        return value in words if isinstance(value, str) else _plain(value) in wanted

    return lambda run: key in run.facts and one_of(run) is (sign == "=")


def _value(text: str) -> object:
    """A value as Hydra reads it, to which 1e-3 is a number."""
    try:
        return float(text)
    except ValueError:
        return yaml.safe_load(text)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: object) -> object:
    """A value to compare: numbers by value, all else as it would be typed."""
    return float(value) if _is_number(value) else yaml.safe_dump(value)  # type: ignore[arg-type]


# --- the commands


def ls(selected: Sequence[Run]) -> int:
    """A table of runs: their states, what tells them apart, and their results."""
    console = Console() if sys.stdout.isatty() else Console(width=400)  # a file has no width
    if not selected:
        console.print("no runs")
        return 0
    differing = differences(selected)
    table = Table("run", "state", *differing, "val/elbo", "test/elbo", "seconds", box=None, pad_edge=False)
    for run in selected:
        results = run.record.get("results") or {}
        scores = [plus_minus(results, name) if name in results else "" for name in ("val/elbo", "test/elbo")]
        cells = [_short(run.facts.get(key, "")) for key in differing]
        table.add_row(run.folder.name, run.facts["state"], *cells, *scores, _short(run.facts.get("seconds", "")))
    console.print(table)
    counts = {state: sum(run.facts["state"] == state for run in selected) for state in record.STATES}
    console.print(", ".join(f"{n} {state}" for state, n in counts.items() if n), highlight=False)
    return 0


def differences(selected: Sequence[Run]) -> list[str]:
    """The keys in which runs differ; of several that say the same, as `encoder.d` says what `d` says, the shortest."""
    keys = sorted({key for run in selected for key in run.config}, key=lambda key: (key.count("."), key))
    seen, found = set(), []
    for key in keys:
        if any(key == aside or key.startswith(f"{aside}.") for aside in identity.ASIDE):
            continue
        values = tuple(_short(run.config.get(key, "")) for run in selected)
        if len(set(values)) > 1 and values not in seen:
            seen.add(values)
            found.append(key)
    return found


def show(selected: Sequence[Run]) -> int:
    """All that is known of each run: its command, its record, its results."""
    console = Console()
    for run in selected:
        known = run.record
        rows = {"command": command(known), "state": run.facts["state"]}
        if run.facts["state"] == "running" and (lock := record.alive(run.folder)):
            rows["state"] = f"running: process {lock['pid']} on {lock['host']}"
        names = ("error", "fingerprint", "started", "ended", "seconds", "attempts", "host")
        rows |= {name: _short(known[name]) for name in names if known.get(name) is not None}
        rows["versions"] = ", ".join(f"{name} {value}" for name, value in known.get("versions", {}).items())
        results = known.get("results") or {}
        rows |= {name: plus_minus(results, name) for name in results if not name.endswith("_se")}
        results_table(str(shown(run.folder.absolute())), rows, console)
        paths = {path.name: str(shown(path.absolute())) for path in sorted(run.folder.iterdir())}
        paths_list(paths, console)
        console.print()
    if not selected:
        console.print("no runs")
    return 0


def rm(selected: Sequence[Run], ask: bool) -> int:
    """Removes runs, after a question; one that is running stays, and makes the exit status 1."""
    if not selected:
        print("no runs")
        return 0
    if ask:
        for run in selected:
            print(f"{run.facts['state']:9} {shown(run.folder.absolute())}")
        if not sys.stdin.isatty():
            raise ValueError(f"yes=true must be given to remove {len(selected)} runs where nobody can be asked")
        if input(f"remove {len(selected)} runs and all that is in them? [y/N] ").strip().lower() not in ("y", "yes"):
            return 1
    status = 0
    for run in selected:
        try:
            with record.claim(run.folder):
                gone = run.folder.with_name(f".{run.folder.name}.{os.getpid()}")
                run.folder.rename(gone)  # from now on there is no such run, whenever this is interrupted
            shutil.rmtree(gone)
            print(f"removed {shown(run.folder.absolute())}")
        except record.Busy as busy:
            print(f"error: {busy}: not removed", file=sys.stderr)
            status = 1
    return status


def retry(selected: Sequence[Run], only_print: bool) -> int:
    """Gives the commands of failed and partial runs again, one after another, each as a process of its own."""
    again = [run for run in selected if run.facts["state"] in ("failed", "partial")]
    if not again:
        print("no run has failed or is partial")
    status = 0
    for run in again:
        print(command(run.record), flush=True)
        if not only_print:
            where = run.record.get("cwd") or "."
            if not Path(where).is_dir():
                raise ValueError(f"{run.folder.name} was trained in {where}, which is not there")
            words = [sys.executable, "-m", "vae_lab.cli", "train", *run.record.get("arguments", [])]
            status = max(status, abs(subprocess.run(words, cwd=where, check=False).returncode))
    return status


def command(known: dict[str, Any]) -> str:
    """The command of a run, as it may be typed."""
    return shlex.join(["vae-lab", "train", *known.get("arguments", [])])


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict | list):
        return yaml.safe_dump(value, default_flow_style=True, width=1000).strip()
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
