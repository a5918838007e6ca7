"""A payload as `vae_lab.report` makes it, of runs that were never trained: what their numbers would be is computed."""

import base64
import io
import itertools
import math
import random
import shlex

import numpy as np
from matplotlib.image import imsave
from scipy.stats import t

D = 64
EIGENVALUES = [5.0 * math.exp(-j / 6) for j in range(D)]
METRICS = [
    {"key": f"{split}/{key}", "label": label, "split": split, "unit": unit, "better": better, "headline": headline}
    for split in ("test", "val")
    for key, label, unit, better, headline in [
        ("elbo", "ELBO", "nats", "max", split == "test"),
        ("kl", "KL", "nats", None, split == "test"),
        ("rec", "reconstruction", "nats", None, split == "test"),
        ("log_p", "log p", "nats", "max", split == "test"),
    ]
]


def linear(d: int, s2: float) -> tuple[float, float, float, int]:
    """Rate, squared error, -rec and active units of the best linear VAE."""
    k = min(d, sum(value > s2 for value in EIGENVALUES))
    rate = 0.5 * sum(math.log(value / s2) for value in EIGENVALUES[:k])
    distortion = k * s2 + sum(EIGENVALUES[k:])
    return rate, distortion, D / 2 * math.log(2 * math.pi * s2) + distortion / (2 * s2), k


def picture(seed: int, size: int = 96) -> str:
    noise = np.random.default_rng(seed).random((6, 6, 3))
    file = io.BytesIO()
    imsave(file, np.kron(noise, np.ones((size // 6, size // 6, 1))), format="png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def a_run(d: int, V: int, s2: float, seed: int, points: int, pictures: list[str]) -> dict:
    draw = random.Random(f"{d} {V} {s2} {seed}")
    rate, distortion, negative_rec, k = linear(d, s2)
    kl = rate * (1 - 0.02 / V) + draw.gauss(0, 0.05)
    rec = -negative_rec - 0.4 - 0.5 / V + draw.gauss(0, 0.1)
    results = {
        f"{s}/{key}": value - (s == "val") * 0.2
        for s in ("test", "val")
        for key, value in [("kl", kl), ("rec", rec), ("elbo", rec - kl)]
    }
    results["test/log_p"] = rec - kl + 0.3
    epochs = [round((i + 1) * 100 / points, 2) for i in range(points)]

    def curve(end: float, begin: float) -> list:
        values = [
            end + (begin - end) * math.exp(-epoch / 6) + draw.gauss(0, 0.02 * abs(begin - end)) for epoch in epochs
        ]
        return [float(f"{value:.6g}") for value in values]

    values = {
        f"val/{key}": curve(results[f"val/{key}"], begin) for key, begin in [("elbo", -300), ("kl", 0), ("rec", -300)]
    }
    words = [f"d={d}", f"objective.V={V}", f"likelihood.s2={s2:g}", f"seed={seed}"]
    identity = f"{draw.getrandbits(48):012x}"
    config = {
        "d": d,
        "objective.V": V,
        "likelihood.s2": s2,
        "seed": seed,
        "data": "digits",
        "encoder": "mlp",
        "trainer.max_epochs": 100,
    }
    config |= {f"encoder.option{i}": i for i in range(30)}
    active = sum(0.5 * math.log(value / s2) > 0.05 for value in EIGENVALUES[:k])
    level = "good" if active == d else "warn" if active > d / 2 else "bad"
    text = (
        "all units are active"
        if active == d
        else f"{d - active} of {d} units inactive: s2 is too large for these data; the linear oracle predicts {d - k}"
    )
    kl_dims = [max(0.003, 0.5 * math.log(max(value / s2, 1))) * draw.uniform(0.97, 1.03) for value in EIGENVALUES[:d]]
    return {
        "id": identity,
        "name": " ".join(words),
        "folder": f"outputs/{','.join(words)}-{identity}",
        "state": "finished",
        "error": None,
        "log": [],
        "command": shlex.join(["vae-lab", "train", *words]),
        "started": "2026-11-23 11:00",
        "seconds": 20 + 3 * V + draw.random(),
        "axes": {"d": d, "objective.V": V, "likelihood.s2": s2, "seed": seed},
        "config": config,
        "results": results,
        "errors": {"test/elbo": 0.412, "test/kl": 0.08, "val/elbo": 0.51},
        "protocol": {key: int(key.startswith("val")) for key in results},
        "verdict": {"text": text, "level": level},
        "kl_dims": [round(value, 4) for value in kl_dims],
        "active": active,
        "predicted": k,
        "aggregate": {"text": "KL(q(z) || p(z)) is at most 0.21 nats"} if V > 1 else None,
        "distortion": distortion * draw.uniform(1.02, 1.2),
        "curves": {
            "epoch": epochs,
            "examples": [1078 * epoch for epoch in epochs],
            "seconds": [0.2 * V * epoch for epoch in epochs],
            "values": values,
        },
        "pictures": dict(zip(["reconstructions", "samples", "manifold"], pictures, strict=True)) if pictures else {},
    }


FAILED = {
    "state": "failed",
    "error": "FloatingPointError: rec is not finite at step 130 of epoch 2 <b>bold</b>",
    "log": ["epoch 1  elbo -31.2", "epoch 2  elbo nan", "</script><img src=x onerror=alert(3)>"],
    "results": {},
    "errors": {},
    "protocol": {},
    "verdict": None,
    "kl_dims": None,
    "active": None,
    "curves": None,
    "pictures": {},
    "distortion": None,
}


def synthetic(
    d: tuple = (2, 8, 32),
    V: tuple = (1, 10),
    s2: tuple = (0.01, 0.1),
    seeds: int = 2,
    points: int = 40,
    hostile: bool = True,
) -> dict:
    """24 runs, or others; where hostile, one is named like HTML, one has failed, and two folders are broken."""
    images = [[picture(3 * i + j) for j in range(3)] for i in range(4)]
    cells = list(itertools.product(d, V, s2, range(seeds)))
    runs = [a_run(*cell, points=points, pictures=images[i % 4] if i < 60 else []) for i, cell in enumerate(cells)]
    broken = []
    if hostile:
        name, command = "<script>alert(1)</script>", "vae-lab train 'run=</script><script>alert(2)</script>'"
        runs[0] |= {"name": name, "command": command}
        runs[-1] |= FAILED
        broken = [
            {"folder": "outputs/<img src=x>", "why": "run.json is no JSON: line 1"},
            {"folder": "outputs/half", "why": "there is no config.yaml"},
        ]
    grid = [10 ** (-3 + 4 * i / 80) for i in range(81)]
    lines = [linear(D, value) for value in grid]
    states = [run["state"] for run in runs]
    axes = [
        {"key": key, "values": sorted(values), "number": True, "log": log, "seed": key == "seed"}
        for key, values, log in [
            ("d", d, True),
            ("likelihood.s2", s2, True),
            ("objective.V", V, True),
            ("seed", range(seeds), False),
        ]
        if len(values) > 1
    ]
    oracle = {
        "label": "digits, raw",
        "runs": [run["id"] for run in runs],
        "rate": [line[0] for line in lines],
        "distortion": [line[1] for line in lines],
        "rec": [-line[2] for line in lines],
        "s2": grid,
        "active": [line[3] for line in lines],
        "note": None,
    }
    counts = {state: states.count(state) for state in ("finished", "failed", "partial", "running")}
    return {
        "title": "outputs: digits <24 runs>",
        "outputs": "outputs",
        "made": "2026-11-23 12:00",
        "version": "0.1.0",
        "defaults": {"x": "likelihood.s2", "y": "test/elbo", "color": "likelihood.s2"},
        "axes": axes,
        "metrics": METRICS,
        "t975": [round(float(t.ppf(0.975, freedom)), 6) for freedom in range(1, 61)],
        "protocols": [protocol(0, "test", 360, "raw"), protocol(1, "val", 359, "raw")],
        "runs": runs,
        "oracles": [oracle],
        "broken": broken,
        "size": counts | {"seconds": sum(run["seconds"] for run in runs)},
        "swept": f"{len(cells) // seeds} cells of d x V x s2, {seeds} seeds each",
    }


def protocol(number: int, split: str, n: int, preprocessing: str) -> dict:
    facts = {"split": split, "n": n, "preprocessing": preprocessing, "V": 1}
    return {"id": number, "text": f"{split} split, n = {n}, {preprocessing}, V = 1", "facts": facts}


def mixed(**sizes: tuple) -> dict:
    """The same, the last third of the runs scored on binarised data."""
    made = synthetic(hostile=False, **sizes)
    made["protocols"].append(protocol(2, "test", 360, "binarised"))
    for run in made["runs"][2 * len(made["runs"]) // 3 :]:
        run["protocol"] = {key: 2 if key.startswith("test") else 1 for key in run["protocol"]}
        run["results"]["test/elbo"] += 40
    return made
