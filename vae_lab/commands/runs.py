"""`vae-lab runs ls|show|rm|retry|watch`: what there is in `outputs`, read from the runs' records. Needs no torch."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from vae_lab.checks import flag
from vae_lab.commands import watch
from vae_lab.commands.tables import paths_list, plus_minus, results_table, shown
from vae_lab.runs import record
from vae_lab.runs.catalogue import Run, command, differences, read, select, short

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
    "watch": {"once": (False, "print it once, as where there is no terminal")},
}
"""The keys of each command: what holds by default, and what they do."""


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
    if command == "watch":
        if filters:
            raise ValueError(f"{filters[0]}: runs watch takes no filters; it shows what is running")
        return watch.watch(Path(str(given["paths.outputs"])), bool(given["once"]))
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
        cells = [short(run.facts.get(key, "")) for key in differing]
        table.add_row(run.folder.name, run.facts["state"], *cells, *scores, short(run.facts.get("seconds", "")))
    console.print(table)
    counts = {state: sum(run.facts["state"] == state for run in selected) for state in record.STATES}
    console.print(", ".join(f"{n} {state}" for state, n in counts.items() if n), highlight=False)
    return 0


def show(selected: Sequence[Run]) -> int:
    """All that is known of each run: its command, its record, its results."""
    console = Console()
    for run in selected:
        known = run.record
        rows = {"command": command(known), "state": run.facts["state"]}
        if run.facts["state"] == "running" and (lock := record.alive(run.folder)):
            rows["state"] = f"running: process {lock['pid']} on {lock['host']}"
        names = ("error", "fingerprint", "started", "ended", "seconds", "peak_mib", "gpu_peak_mib", "attempts", "host")
        rows |= {name: short(known[name]) for name in names if known.get(name) is not None}
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
                kept = record.wandb_folders(run.folder)
                gone = run.folder.with_name(f".{run.folder.name}.{os.getpid()}")
                run.folder.rename(gone)  # from now on there is no such run, whenever this is interrupted
            for folder in (*kept, gone):
                shutil.rmtree(folder)
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
