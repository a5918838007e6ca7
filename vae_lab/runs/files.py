"""The files of a run's folder, without torch: what they are called, how they are written and read."""

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

CONFIG, ENVIRONMENT, METRICS, EVALUATION = "config.yaml", "environment.json", "metrics.json", "evaluation.json"
HISTORY, LOG = "history.jsonl", "job.log"  # the log is what a launcher's job prints
PACKAGES = ["torch", "pytorch-lightning", "hydra-core", "omegaconf", "wandb", "torchmetrics", "numpy", "scikit-learn"]

Config = dict[str, Any]

_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same in C, where PyYAML has it: ten times faster


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Writes YAML or JSON, by the file's ending; a reader sees the old file or the new one, never a half."""
    text = (
        yaml.safe_dump(dict(content), sort_keys=False)
        if path.suffix == ".yaml"
        else json.dumps(content, indent=2, default=str)
    )
    replace(path, (text + "\n" * (not text.endswith("\n"))).encode())


def replace(path: Path, content: bytes) -> None:
    """Writes a file, and its folder if need be, as `write` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def environment(overrides: Sequence[str]) -> dict[str, Any]:
    """What a run ran in: the versions of python and packages, the machine, the git revision, the overrides."""
    from importlib.metadata import PackageNotFoundError, version  # which takes a while to import

    here = Path(__file__).resolve().parent
    versions = {}
    for package in ("vae-lab", *PACKAGES):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "overrides": list(overrides),
        "command": " ".join(sys.argv),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "git": {"revision": _git(here, "rev-parse", "HEAD"), "changed": bool(_git(here, "status", "--porcelain"))},
    }


@cache  # what this process has imported does not change any more
def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def flat(config: Mapping[str, Any], prefix: str = "") -> Config:
    """Nested keys joined by dots: `{"objective": {"V": 5}}` -> `{"objective.V": 5}`."""
    items: Config = {}
    for key, value in config.items():
        items |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return items


def read_config(folder: str | Path) -> Config:
    """The resolved configuration of the run in `folder`; raises ValueError where there is none."""
    path = Path(folder) / CONFIG
    try:
        config = yaml.load(path.read_text(), _YAML)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{folder} is not the folder of a run: {path} cannot be read ({reason(error)})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{folder} is not the folder of a run: {path} holds no mapping")
    return config


def finite(values: Mapping[str, Any]) -> dict[str, float | None]:
    """Metrics as plain numbers, for JSON: what is not finite becomes null; Lightning's step is none."""
    numbers = {k: float(v) for k, v in values.items() if k != "step"}
    return {k: v if math.isfinite(v) else None for k, v in numbers.items()}


def rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a history's file, of which the last line may be torn; none where there is no file."""
    path = Path(path)
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def tail(folder: str | Path, lines: int = 3) -> list[str]:
    """The last lines that a job has printed."""
    try:
        with open(Path(folder) / LOG, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]


def reason(error: BaseException) -> str:
    """The first line of what an error says."""
    return (str(error).splitlines() or [type(error).__name__])[0]
