"""A run's identity: the fingerprint of what it computes, whatever it is called and wherever it runs."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

FORMAT = 1
"""Part of every fingerprint: raised by a version of vae_lab whose results differ from those of the one before."""

ASIDE = {
    # where a run and what it leaves behind lie, and what is done with those of before
    *("hydra", "paths", "check", "force", "wait"),
    # where the data lie; a file of one's own counts by what is in it (see `content`)
    *("data.root", "data.cache", "data.mirrors"),
    # who watches: these change nothing that is computed
    # (a run that a study has ended is partial)
    *("logger", "callbacks.pictures", "callbacks.progress", "callbacks.pruning"),
    *("callbacks.checkpoint.folder", "callbacks.checkpoint.every_seconds"),
    # which devices do the work, and how: results do not depend on it, but for rounding
    "engine",
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.plugins"),
    *("trainer.default_root_dir", "trainer.log_every_n_steps", "trainer.profiler", "trainer.detect_anomaly"),
    *("trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.enable_checkpointing"),
    # what is filled in from the rest of the configuration and the data
    *("decoder.outputs", "encoder.n"),
}
"""Keys that are no part of what a run computes; everything else is.

Among what stays in are `sampling.block`, as Lightning's limits count blocks; `sampling.eval_batch_size`, as a batch
decides which noise its data are scored with; and what `callbacks.checkpoint` takes for the best, which is tested.
"""

DIGITS = 12  # of a fingerprint: 54 runs collide with probability 5e-12, a million with 2e-3
WHOLE, SAMPLES, SAMPLE = 256 * 2**20, 256, 2**20  # bytes of a file that is hashed whole; parts of a larger one


def fingerprint(config: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that name what `config` computes: equal for equal runs, wherever and however they run.

    `config` is composed, as Hydra has it (only what counts is resolved), or resolved, as `config.yaml` holds it. The
    order of keys does not count, nor whether a number is written 1 or 1.0.

    Raises:
        ValueError: if a data file of the run's own cannot be read.
    """
    science = _science(config, "")
    root = config["data"].get("root") if isinstance(config.get("data"), Mapping) else None
    if root is not None and (path := Path(root).expanduser()).is_file():
        status = path.stat()
        science["data.root"] = content(path, status.st_size, status.st_mtime_ns)
    text = json.dumps({"format": FORMAT, "config": science}, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def _science(node: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """What counts of `node`, flat; what is set aside is not even looked at, as it may need a run's folder, or W&B."""
    found: dict[str, Any] = {}
    for key in node:
        if (name := f"{prefix}{key}") in ASIDE:
            continue
        value = node[key]
        found |= _science(value, f"{name}.") if isinstance(value, Mapping) else {name: _plain(value)}
    return found


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@lru_cache(maxsize=64)
def content(path: Path, size: int, modified: int) -> str:
    """What is in a file, as a hash: of the whole, or, above 256 MiB, of its size and 256 parts spread over it.

    Args:
        size, modified: the file's, so that one that has changed is read again
    """
    found = hashlib.sha256(str(size).encode())
    try:
        with open(path, "rb") as file:
            starts = [0] if size <= WHOLE else [i * (size - SAMPLE) // (SAMPLES - 1) for i in range(SAMPLES)]
            for start in starts:
                file.seek(start)
                if size <= WHOLE:
                    while part := file.read(SAMPLE):
                        found.update(part)
                else:
                    found.update(file.read(SAMPLE))
    except OSError as error:
        raise ValueError(f"data.root cannot be read: {error}") from error
    return found.hexdigest()


def folder(outputs: str | Path, overrides: Sequence[str], fingerprint: str) -> Path:
    """The folder of the run called `fingerprint`: the one that is there, whatever its readable part, else a new name.

    Args:
        outputs: the folder of all runs
        overrides: what the run was asked for, the readable part
    """
    outputs = Path(outputs).absolute()
    return next(iter(existing(outputs, fingerprint)), outputs / f"{readable(overrides)}-{fingerprint}")


def existing(outputs: Path, fingerprint: str) -> list[Path]:
    """The folders there are of the run called `fingerprint`: none or one, but for commands given at the same moment."""
    try:
        names = sorted(name for name in os.listdir(outputs) if name.endswith(f"-{fingerprint}"))
    except OSError:
        return []
    return [outputs / name for name in names if (outputs / name).is_dir()]


def run_name(overrides: Sequence[str]) -> str:
    """What was asked for: the overrides that matter to the result, as a run's name."""
    keys = ("paths.", "logger", "callbacks", "engine", "hydra", "check=", "force=", "wait=")
    aside = (*keys, "trainer=", "trainer.devices", "trainer.accelerator", "trainer.strategy")
    words = [word for word in (o.lstrip("+~") for o in overrides) if not word.startswith(aside)]
    return " ".join(words) or "defaults"


def sweep_name(overrides: Sequence[str]) -> str:
    """What a sweep is called that was asked for by these overrides: the same whenever they are typed, in any order."""
    overrides = sorted(overrides)
    return f"{readable(overrides)}-{hashlib.sha256(run_name(overrides).encode()).hexdigest()[:6]}"


def readable(overrides: Sequence[str]) -> str:
    """A run's name as part of a folder's name that may be typed anywhere, as the value of an override too."""
    name = re.sub(r"[^\w.]+", "-", run_name(overrides).replace(" ", "_")).strip("-.")
    return name if len(name) <= 80 else name[:80].rpartition("_")[0] or name[:80]
