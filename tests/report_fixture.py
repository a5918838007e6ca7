"""Runs to report on: made up, as training would leave them, and real ones."""

import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from vae_lab import hints, runs
from vae_lab.cli import register_resolvers
from vae_lab.runs import identity, record

N_TRAIN, N_VAL, N_TEST, STEPS = 1257, 180, 360, 13  # of the digits; batches of 100 in an epoch


def composed(*overrides):
    """The resolved configuration of a run."""
    register_resolvers()
    with initialize_config_dir(str(hints.CONF), version_base="1.3"):
        cfg = compose("train", ["logger=none", "paths.run=somewhere", *overrides])
    cfg.decoder.outputs = 1
    return OmegaConf.to_container(cfg, resolve=True)


def history(rng, d, epochs, elbo):
    """Rows as LitVAE logs them."""
    rows, values = [], {}
    for epoch in range(1, epochs + 1):
        noise = rng.normal(0, 0.3)
        for split, n in (("val", N_VAL), ("train", N_TRAIN)):
            kl = 6 * (1 - math.exp(-epoch / 5))
            now = elbo - 60 * math.exp(-epoch / 8) + noise
            row = {"loss": -now, "elbo": now, "rec": now + kl, "kl": kl, "elbo_total": n * now}
            if split == "val":
                row |= {"elbo_se": 0.9, "active_units": float(d)}
                row |= {f"kl_dim/{j:0{len(str(d - 1))}d}": kl / d for j in range(d)}
            else:
                row |= {"images_per_second": 10000.0}
            named = {f"{split}/{name}": value for name, value in row.items()}
            rows.append({"step": epoch * STEPS} | named)
            values |= named
    tested = {name.replace("val/", "test/"): value for name, value in values.items() if name.startswith("val/")}
    tested |= {"test/elbo_total": N_TEST * tested["test/elbo"]}
    return [*rows, {"step": epochs * STEPS} | tested], values | tested


def make(outputs, config, overrides, elbo=-40.0, epochs=3, state="finished", d=2, seed=0, pictures=None, name=None):
    """A run's folder, as training leaves it."""
    fingerprint = identity.fingerprint(config)
    folder = Path(outputs) / (name or f"{identity.readable(overrides)}-{fingerprint}")
    record.begin(folder, fingerprint, overrides)
    runs.write(folder / runs.CONFIG, config)
    rows, results = history(np.random.default_rng(seed), d, epochs, elbo)
    (folder / runs.HISTORY).write_text("".join(json.dumps(row) + "\n" for row in rows))
    for file, content in (pictures or {}).items():
        (folder / "pictures").mkdir(exist_ok=True)
        (folder / "pictures" / f"{file}.png").write_bytes(content)
    if state != "running":
        error = "FloatingPointError: kl not finite at step 7" if state == "failed" else None
        record.end(folder, state, 12.5, results if state == "finished" else {}, elbo, error)
    return folder


def grid(outputs, ds=(2, 8), Vs=(1, 10), s2s=(0.02, 0.2), seeds=(0, 1), pictures=None, epochs=3):
    """A sweep over d, V, s2 and seeds, whose ELBO depends on each."""
    base, folders = composed(), []
    for i, (d, V, s2, seed) in enumerate(itertools.product(ds, Vs, s2s, seeds)):
        config = json.loads(json.dumps(base))
        for part in ("encoder", "decoder", "prior", "posterior"):
            config[part]["d"] = d
        config["encoder"]["posterior"]["d"] = d
        config |= {"d": d, "seed": seed}
        config["objective"]["V"], config["likelihood"]["s2"] = V, s2
        elbo = -40 + math.log(d) + 0.5 * math.log(V) - 10 * s2 + 0.1 * seed * (1 + 0.3 * math.log(V))
        overrides = [f"d={d}", f"objective.V={V}", f"likelihood.s2={s2}", f"seed={seed}"]
        folders.append(make(outputs, config, overrides, elbo, epochs, d=d, seed=i, pictures=pictures))
    return folders


def png(width=1208, height=420, seed=0):
    """A picture such as a run leaves: tiles of grey levels, pixel for pixel."""
    rng = np.random.default_rng(seed)
    tiles = rng.integers(0, 256, (height // 12, width // 12), dtype=np.uint8)
    return _bytes(Image.fromarray(np.kron(tiles, np.ones((12, 12), np.uint8))).convert("RGB"))


def _bytes(image):
    import io

    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def sweep(folder):
    """The outputs of a sweep of 24 short runs on the digits, 3 d, 2 V, 2 s2 and 2 seeds, made by the tool itself."""
    words = ["d=2,4,8", "objective.V=1,5", "likelihood.s2=0.02,0.2", "seed=0,1"]
    words += ["trainer.max_epochs=6", "optimizer.lr=0.005", "logger=none", f"paths.outputs={folder / 'outputs'}"]
    command = [sys.executable, "-m", "vae_lab.cli", "train", "-m", *words]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "outputs"
