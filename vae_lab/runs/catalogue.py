"""What runs there are in a folder, read from their own records; which of them are meant; in what they differ.

Needs no torch. What is unreadable stops nothing: `broken` tells what it is.
"""

import math
import operator
import re
import shlex
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from vae_lab import hints
from vae_lab.checks import closest
from vae_lab.runs import identity, record
from vae_lab.runs.files import CONFIG, LOG, flat, read_config, reason


class Run(NamedTuple):
    """A run's folder, and what is known of it by name: configuration, record, metrics."""

    folder: Path
    config: dict[str, Any]  # flat
    record: dict[str, Any]
    facts: dict[str, Any]


def read(outputs: Path) -> list[Run]:
    """The runs in `outputs` that have a record, by name."""
    return [_read(path.parent) for path in sorted(outputs.glob(f"*/{record.RECORD}"))]


@cache
def _options() -> dict[tuple[str, Any], str]:
    """The option of a group that describes a class."""
    return {
        (group, hints.read(f"{group}/{option}").get("_target_")): option
        for group, names in hints.groups("train").items()
        for option in names
        if group not in ("experiment", "callbacks", "trainer")
    }


def columns(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration under the keys that are typed: `likelihood.s2`, and the option of each group, `encoder`."""
    found = flat(config)
    for group, node in config.items():
        if isinstance(node, Mapping) and isinstance(target := node.get("_target_"), str):
            found[group] = _options().get((group, target), target)
    return {key: value for key, value in found.items() if not key.endswith("_target_")}


def _read(folder: Path) -> Run:
    known = record.read(folder) or {}
    try:
        config = columns(read_config(folder))
    except (ValueError, RecursionError):  # its process was killed before it was written
        config = {}
    own = {key: value for key, value in known.items() if not isinstance(value, dict | list)}
    old = re.search(r"\.old-\d+$", folder.name) is not None
    results = known.get("results")
    facts = config | (results if isinstance(results, dict) else {}) | own
    facts |= {"state": record.state(folder), "run": folder.name, "old": old}
    return Run(folder, config, known, facts)


def is_sound(run: Run) -> bool:
    """Whether its record and its configuration could be read."""
    return bool(run.config) and _is_record(run.record)


class Broken(NamedTuple):
    """A folder that cannot be read as a run, and why."""

    folder: Path
    why: str


def broken(outputs: Path, sound: Collection[Path] = ()) -> list[Broken]:
    """The folders in `outputs` that are no runs, or of whose record or configuration nothing can be read, by name.

    Hidden folders are the tools' own, and `wandb` is; an empty one is nothing yet.

    Args:
        sound: the folders of runs that were read already
    """
    aside = (path for path in sorted(outputs.iterdir()) if path.is_dir() and not path.name.startswith("."))
    folders = (path for path in aside if path.name != record.WANDB and path not in sound)
    return [Broken(folder, why) for folder in folders if (why := _wrong(folder)) is not None]


def _begins(folder: Path, inside: Collection[str]) -> bool:
    """Whether a run may be about to begin: there is nothing yet but its lock, or a log that was just written."""
    if set(inside) - {record.LOCK, LOG}:
        return False
    try:
        return LOG not in inside or time.time() - (folder / LOG).stat().st_mtime < record.STALE
    except OSError:
        return True  # it was moved aside this very moment


def _is_record(known: dict[str, Any]) -> bool:
    kinds = {"state": str, "overrides": list, "arguments": list, "results": dict}
    whole = all(isinstance(known.get(name) or kind(), kind) for name, kind in kinds.items())
    return whole and known.get("state") in record.STATES


def _wrong(folder: Path) -> str | None:
    try:
        inside = {path.name for path in folder.iterdir()}
    except OSError as error:
        return f"it cannot be read ({reason(error)})"
    if record.RECORD not in inside:
        if CONFIG in inside:
            return f"it has a {CONFIG} and no {record.RECORD}: no run of `train`"
        return None if _begins(folder, inside) else f"no run: it has no {record.RECORD}"
    known = record.read(folder)
    if known is None:
        return f"{record.RECORD} is torn, or no JSON"
    if not _is_record(known):
        return f"{record.RECORD} is not the record of a run"
    try:
        flat(read_config(folder))
    except (ValueError, RecursionError) as error:
        return reason(error).partition(" is not the folder of a run: ")[2].replace(f"{folder}/", "") or reason(error)
    return None


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
        if not is_number(limit):
            raise ValueError(f"{key}{sign}{text}: {text!r} is no number")
        return lambda run: is_number(value := run.facts.get(key)) and ORDER[sign](value, limit)
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


def is_number(value: object) -> bool:
    """Whether it is an int or a float, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def number(value: object) -> float | None:
    """A value as a number, if it is a finite one, and no truth value."""
    try:
        return value if is_number(value) and math.isfinite(value) else None  # type: ignore[arg-type, return-value]
    except OverflowError:  # an int that no float can hold
        return None


def _plain(value: object) -> object:
    """A value to compare: numbers by value, all else as it would be typed."""
    return float(value) if is_number(value) else yaml.safe_dump(value)  # type: ignore[arg-type]


# --- what tells them apart


def differences(selected: Sequence[Run]) -> list[str]:
    """The keys in which runs differ; of several that say the same, as `encoder.d` says what `d` says, the shortest."""
    keys = sorted({key for run in selected for key in run.config}, key=lambda key: (key.count("."), key))
    seen, found = set(), []
    for key in keys:
        if any(key == aside or key.startswith(f"{aside}.") for aside in identity.ASIDE):
            continue
        values = tuple(short(run.config.get(key, "")) for run in selected)
        if len(set(values)) > 1 and values not in seen:
            seen.add(values)
            found.append(key)
    return found


def command(known: dict[str, Any]) -> str:
    """The command of a run, as it may be typed."""
    return shlex.join(["vae-lab", "train", *map(str, known.get("arguments") or [])])


def short(value: object) -> str:
    """A value as it is typed, numbers with six digits."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return f"[{', '.join(map(short, value))}]"
    if isinstance(value, dict):
        return yaml.safe_dump(value, default_flow_style=True, width=1000).strip()
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
