"""The README's commands, exactly as printed."""

import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vae_lab import hints

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.partition(" #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]


def test_the_first_screen_shows_both_commands_and_a_picture():
    first = README[: README.index("## A tour")]
    assert COMMANDS[:2] == ["make train", "make test"] and "docs/images/digits.png" in first
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / picture).is_file()


def test_make_knows_its_commands():
    for target in ("train", "test"):
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0 and ("scripts/train.py" if target == "train" else "pytest") in done.stdout


def test_groups_are_all_listed():
    table = dict(re.findall(r"^\| (`.+?`) \| (`.+?`) \|", README, re.MULTILINE))
    listed = {group: options for names, options in table.items() for group in re.findall(r"`(\w+)`", names)}
    for group, options in hints.groups("train").items():
        assert sorted(re.findall(r"`(\w+)`", listed[group])) == options


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_commands_run_as_they_stand(tmp_path, data_folder):
    """In an empty folder with nothing but the scripts; Fashion-MNIST lies in the cache, as after a first download."""
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    cache = tmp_path / "cache" / "vae_lab" / "fashion-mnist"
    cache.mkdir(parents=True)
    for packed in (data_folder / "fashion-mnist").glob("*.gz"):
        with gzip.open(packed) as source, open(cache / packed.stem, "wb") as target:
            shutil.copyfileobj(source, target)
    np.save(tmp_path / "faces.npy", np.random.default_rng(0).integers(0, 256, (200, 12, 10), dtype=np.uint8))
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "WANDB_MODE": "offline"}
    ran = []
    for line in COMMANDS:
        if not line.startswith("python scripts/") or "benchmark" in line:
            continue
        runs = sorted(tmp_path.glob("outputs/*/metrics.json"))
        words = shlex.split(line.replace("<run>", runs[-1].parent.name if runs else "<run>"))
        done = subprocess.run(
            [sys.executable, *words[1:]],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        new = len(list(tmp_path.glob("outputs/*/metrics.json"))) - len(runs)
        ran.append(new)
    assert ran == [1, 8, 1, *[0] * 9, 1, *[0] * 3]
    assert len(list(tmp_path.glob("outputs/*/evaluation.json"))) == 1
    # of docs/results.md; it takes too long to be trained for that again
    [kw13] = tmp_path.glob("outputs/experiment-kw13_fashion-*/metrics.json")
    assert json.loads(kw13.read_text())["test/elbo"] >= -251
