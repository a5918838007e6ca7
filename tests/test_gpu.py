"""What differs where there is a GPU: the training step, mixed precision, the pool's slots, several GPUs for one run."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

import vae_lab
from vae_lab.commands.training import assemble
from vae_lab.hints import CONF
from vae_lab.interfaces import Batch
from vae_lab.runs import record

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.timeout(600),
]

SHORT = ["logger=none", "callbacks=[checkpoint]", "trainer.max_epochs=5"]
LIKELIHOODS = sorted(path.stem for path in (CONF / "likelihood").glob("*.yaml"))
SUPPORT = {
    "bernoulli": ["preprocessing=binarised_static"],
    "categorical": ["likelihood.levels=17"],
    "discretised_logistic": ["likelihood.levels=17"],
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def train(*overrides):
    """A command in a process of its own; the folders of its runs."""
    command = [sys.executable, "-m", "vae_lab.cli", "train", *overrides, *SHORT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    [outputs] = [o.partition("=")[2] for o in overrides if o.startswith("paths.outputs=")] or ["outputs"]
    return sorted(path.parent for path in Path(outputs).glob("*/run.json"))


def results(run):
    return json.loads((run / "metrics.json").read_text())


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu")["state_dict"]


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_objective_and_its_gradients_are_those_of_the_cpu(likelihood):
    """In double precision, with the same noise: what is left is rounding."""
    overrides = [f"likelihood={likelihood}", "trainer.accelerator=cpu", "paths.run=.", *SUPPORT.get(likelihood, [])]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [*overrides, *SHORT])
    data, lit, _ = assemble(cfg)
    batch = next(iter(data.train_feed()))
    batch = Batch(batch.x.double() if batch.x.is_floating_point() else batch.x, batch.index, batch.label)
    eps = torch.randn(lit.objective.samples, len(batch.x), lit.vae.d, dtype=torch.float64)
    found = []
    for device in ("cpu", "cuda"):
        vae = copy.deepcopy(lit.vae).double().to(device)
        moved = Batch(*(None if part is None else part.to(device) for part in batch))
        terms = lit.objective.to(device)(vae, moved, eps.to(device))
        terms.loss.mean().backward()
        found.append([terms.elbo.detach().cpu(), *(p.grad.cpu() for p in vae.parameters() if p.grad is not None)])
    for on_cpu, on_gpu in zip(*found, strict=True):
        torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-9, atol=1e-9)


def test_a_run_is_trained_on_the_gpu_and_its_model_loads_on_the_cpu():
    [gpu] = train("trainer.accelerator=gpu")
    assert results(gpu)["test/elbo"] is not None
    assert next(vae_lab.load(gpu).parameters()).device.type == "cpu"


def test_mixed_precision_comes_near_to_full_precision():
    """bfloat16 rounds by 2^-8: a run of its own kind, whose score is within some rounding of the greater term."""
    full, half = train("-m", "trainer.precision=32-true,bf16-mixed", "trainer.accelerator=gpu")
    a, b = results(full), results(half)
    assert abs(a["test/elbo"] - b["test/elbo"]) < 0.05 * (abs(a["test/rec"]) + a["test/kl"])


def test_the_pool_gives_each_gpu_its_jobs():
    n = torch.cuda.device_count()
    runs = train("-m", f"seed={','.join(map(str, range(n + 1)))}", "hydra/launcher=pool", "trainer.accelerator=gpu")
    assert len(runs) == n + 1
    assert all(json.loads((run / "run.json").read_text())["state"] == "finished" for run in runs)


@pytest.mark.parametrize(("steps", "how"), [(0, "compiled in"), (10**9, "not compiled")])
def test_packed_runs_come_to_what_they_come_to_alone(steps, how):
    """As CUDA graphs, and as the operations that these are of; all is in single precision, and so is rounding."""
    shared = ["-m", "d=2,4", "seed=1,2", "likelihood.s2=0.1", "trainer.accelerator=gpu"]
    launcher = ["hydra/launcher=packed", "hydra.launcher.devices=[0]", f"hydra.launcher.steps={steps}"]
    packed = train(*shared, *launcher, "paths.outputs=packed")
    alone = train(*shared, "engine=eager", "paths.outputs=alone")
    others = {record.read(run)["fingerprint"]: weights(run) for run in alone}
    assert len(packed) == len(others) == 4
    for run in packed:
        assert f"one of 4 runs that are packed, {how}" in (run / "job.log").read_text()
        own = weights(run)
        for name, v in others[record.read(run)["fingerprint"]].items():
            torch.testing.assert_close(own[name], v, rtol=1e-4, atol=1e-4)  # as on a CPU


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_several_gpus_give_what_one_gives():
    """In double precision, so that what is left is rounding."""
    shared = ["trainer=ddp", "trainer.precision=64-true"]
    [[one], [two]] = (train(*shared, f"trainer.devices={n}", f"paths.outputs=outputs/{n}") for n in (1, 2))
    a, b = weights(one), weights(two)
    assert max((a[name] - b[name]).abs().max() for name in a) < 1e-9
