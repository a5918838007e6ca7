"""The sweeps that are running: what each left beside its runs, as what has not begun is in no other file."""

import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vae_lab.runs import record
from vae_lab.runs.files import write

FOLDER, FILE = ".sweeps", "sweep.json"
NAME, AXES = "VAE_LAB_SWEEP", "VAE_LAB_SWEPT"
"""Variables of the environment by which a job knows the sweep that started it: its name, and the keys it varies."""


@contextmanager
def named(name: str, axes: Sequence[str]) -> Iterator[None]:
    """Whatever is started meanwhile is a job of the sweep called `name`, which varies the keys `axes`."""
    before = {variable: os.environ.get(variable) for variable in (NAME, AXES)}
    os.environ |= {NAME: name, AXES: " ".join(axes)}
    try:
        yield
    finally:
        for variable, value in before.items():
            if value is None:
                del os.environ[variable]
            else:
                os.environ[variable] = value


@contextmanager
def noted(outputs: Path, cells: Sequence[Mapping[str, Any]], slots: int) -> Iterator[None]:
    """Leaves a note of a sweep in `outputs` for as long as it lasts, and removes those of sweeps that have died.

    Args:
        cells: of each, its `run` (the folder's name) and its `overrides`
        slots: how many run at a time
    """
    for old in outputs.glob(f"{FOLDER}/*"):
        if old.is_dir() and not record.alive(old):
            import shutil  # which imports all that it can compress with

            shutil.rmtree(old, ignore_errors=True)
    folder = outputs / FOLDER / f"{socket.gethostname()}-{os.getpid()}"
    try:
        with record.claim(folder):  # its heartbeat tells other hosts that the sweep lives
            write(folder / FILE, {"name": os.environ.get(NAME), "slots": slots, "cells": [dict(c) for c in cells]})
            try:
                yield
            finally:
                (folder / FILE).unlink(missing_ok=True)
    finally:
        record.tidy(folder)
        record.tidy(folder.parent)


def running(outputs: Path) -> list[dict[str, Any]]:
    """The notes of the sweeps that live."""
    found = []
    for path in sorted(outputs.glob(f"{FOLDER}/*/{FILE}")):
        if record.alive(path.parent):
            try:
                found.append(json.loads(path.read_text()))
            except (OSError, ValueError):
                continue  # it has ended meanwhile
    return found
