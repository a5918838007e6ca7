"""A run's fingerprint: the same for the same computation, wherever it runs; another for every other one."""

import inspect
import itertools
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import pytorch_lightning as pl
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from vae_lab import hints, runs
from vae_lab.cli import register_resolvers
from vae_lab.runs import identity


def composed(*overrides):
    register_resolvers()
    with initialize_config_dir(str(hints.CONF), version_base="1.3"):
        return compose("train", list(overrides))


def fingerprint(*overrides):
    return identity.fingerprint(composed(*overrides))


@pytest.fixture(scope="module")
def plain():
    return fingerprint()


COUNTS = [
    *("d=3", "classes=10", "seed=1", "data=mnist", "data.validation=100", "data.shape=[64]"),
    *("preprocessing=dequantised", "preprocessing=binarised_static", "sampling=with_replacement"),
    *("sampling.batch_size=50", "sampling.block=5", "sampling.eval_batch_size=100", "encoder=linear", "encoder=conv"),
    *("encoder.hidden=[256]", "encoder.activation=tanh", "posterior=full", "decoder=linear", "decoder.hidden=[1]"),
    *("likelihood=bernoulli", "likelihood.s2=0.1", "prior=mixture", "objective=iwae", "objective.V=2"),
    *("objective.beta=2", "optimizer=sgd", "optimizer.lr=1e-2", "optimizer.betas=[0.9,0.99]", "schedule=cosine"),
    *("trainer.max_epochs=99", "trainer.max_steps=5", "trainer.precision=64-true", "trainer.gradient_clip_val=1"),
    *("trainer.max_time='00:00:01:00'", "trainer.check_val_every_n_epoch=2", "+trainer.limit_train_batches=3"),
    *(
        "callbacks=[checkpoint,early_stopping]",
        "callbacks.checkpoint.monitor=val/rec",
        "experiment=linear_digits",
        "+own.key=1",
    ),
]


@pytest.mark.parametrize("override", COUNTS)
def test_what_is_computed_counts(override, plain):
    assert fingerprint(override) != plain


def test_no_two_of_them_are_alike():
    found = [fingerprint(override) for override in COUNTS]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    "override",
    [
        *("paths.outputs=/elsewhere", "paths.run=/elsewhere/run", "force=true", "wait=true"),
        *("logger=none", "logger=csv", "logger.project=other", "logger.offline=true", "logger.tags=[a]"),
        *("callbacks=[checkpoint]", "callbacks.checkpoint.every_seconds=1", "callbacks.pictures.every_n_epochs=1"),
        *("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "trainer.strategy=ddp"),
        "+trainer.num_nodes=2",
        *("trainer.log_every_n_steps=1", "trainer.enable_progress_bar=true", "+trainer.profiler=simple"),
        "engine=compiled",
        "engine.steps=3",
        "trainer.default_root_dir=/elsewhere",
        # what holds anyhow
        *("d=2", "likelihood.s2=2e-2", "encoder=mlp", "encoder.d=2", "likelihood.shape=[1,8,8]"),
        *("objective.beta=1", "decoder.outputs=1", "trainer.max_steps=-1"),
    ],
)  # fmt: skip
def test_where_it_runs_does_not(override, plain):
    assert fingerprint(override) == plain


def test_where_data_lie_does_not_count(tmp_path):
    assert fingerprint("data=mnist", f"data.root={tmp_path}") == fingerprint("data=mnist")
    assert fingerprint("data=mnist", "data.cache=/x", "data.mirrors=[http://x]") == fingerprint("data=mnist")
    free = [fingerprint("encoder=free", *more) for more in ([], ["encoder.n=1257"])]
    assert free[0] == free[1] != fingerprint("encoder=free", "encoder.lr=1")


def test_every_key_that_is_set_aside_exists():
    trainer = {f"trainer.{key}" for key in inspect.signature(pl.Trainer).parameters}
    known = hints.keys("train") | trainer | {"hydra", "callbacks.pruning"}  # which a study adds
    assert known >= identity.ASIDE


def test_the_order_of_keys_and_of_overrides_does_not_count():
    words = ["d=4", "likelihood=bernoulli", "objective.V=3"]
    assert len({fingerprint(*order) for order in itertools.permutations(words)}) == 1
    config = {"b": {"y": 1, "x": [1, 2]}, "a": "w"}
    assert identity.fingerprint(config) == identity.fingerprint({"a": "w", "b": {"x": [1, 2], "y": 1.0}})
    assert identity.fingerprint(config) != identity.fingerprint({"a": "w", "b": {"x": [2, 1], "y": 1}})


def test_truth_is_no_number():
    assert len({identity.fingerprint({"x": x}) for x in (1, True, "1", 0, False, None, "None")}) == 7
    assert identity.fingerprint({"x": 1}) == identity.fingerprint({"x": 1.0}) != identity.fingerprint({"x": 1.5})


def test_it_is_the_same_of_the_resolved_configuration(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    cfg = composed("encoder=free", "optimizer.lr=1e-5", "logger=none")
    cfg.encoder.n, cfg.decoder.outputs = 7, 3
    runs.write(tmp_path / "config.yaml", OmegaConf.to_container(cfg, resolve=True))
    kept = identity.fingerprint(runs.read_config(tmp_path))
    assert kept == fingerprint("encoder=free", "optimizer.lr=1e-5")
    shuffled = list(yaml.safe_load((tmp_path / "config.yaml").read_text()).items())
    random.Random(0).shuffle(shuffled)
    assert identity.fingerprint(dict(shuffled)) == kept


def test_it_is_the_same_in_every_process_and_needs_neither_torch_nor_wandb(plain):
    code = (
        "import sys; from hydra import compose, initialize_config_dir; from vae_lab import cli, hints\n"
        "cli.register_resolvers()\n"
        "with initialize_config_dir(str(hints.CONF), version_base='1.3'): cfg = compose('train')\n"
        "from vae_lab.runs import identity; print(identity.fingerprint(cfg), cfg.paths.run)\n"
        "assert not {'torch', 'wandb', 'pytorch_lightning'} & set(sys.modules)"
    )
    for seed in "12":
        env = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60)
        assert done.returncode == 0, done.stderr
        found, folder = done.stdout.split()
        assert found == plain and folder.endswith(f"/outputs/defaults-{plain}")


def test_its_format_is_part_of_it(monkeypatch, plain):
    monkeypatch.setattr(identity, "FORMAT", identity.FORMAT + 1)
    assert fingerprint() != plain


# --- data of one's own


def own(path, *overrides):
    return fingerprint("data=arrays", f"data.root={path}", *overrides)


def test_a_file_counts_by_what_is_in_it(tmp_path):
    x = np.arange(2000, dtype=np.uint8).reshape(20, 10, 10)
    np.save(tmp_path / "a.npy", x)
    np.save(tmp_path / "b.npy", x)
    first = own(tmp_path / "a.npy")
    assert own(tmp_path / "b.npy") == first  # wherever it lies
    x[3, 4, 5] += 1
    np.save(tmp_path / "a.npy", x)
    os.utime(tmp_path / "a.npy", ns=(1, 1))
    assert own(tmp_path / "a.npy") != first
    assert own(tmp_path / "b.npy", "data.test=0.2") != first


def test_a_large_file_counts_by_its_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "WHOLE", 1000)
    monkeypatch.setattr(identity, "SAMPLE", 10)
    path, content = tmp_path / "x.bin", bytearray(10_000)

    def found():
        path.write_bytes(content)
        os.utime(path, ns=(0, next(times)))
        return identity.fingerprint({"data": {"root": str(path)}})

    times = iter(range(10))
    first = found()
    assert found() == first
    for place in (0, 9999):
        content[place] = 1
        assert found() != first
        content[place] = 0
    content.append(0)
    assert found() != first


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "x.npy").write_bytes(b"x")

    def fail(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", fail)
    with pytest.raises(ValueError, match=r"data\.root cannot be read"):
        identity.fingerprint({"data": {"root": str(tmp_path / "x.npy")}})


# --- the folder


def test_a_folder_is_found_by_its_fingerprint(tmp_path):
    new = identity.folder(tmp_path, ["d=8", "logger=none"], "0123456789ab")
    assert new == tmp_path / "d-8-0123456789ab" and not new.exists()
    there = tmp_path / "as_somebody_else_typed_it-0123456789ab"
    there.mkdir()
    (tmp_path / "d-8-0123456789ab.old-1").mkdir()
    (tmp_path / "a_file-0123456789ab").touch()
    assert identity.folder(tmp_path, ["d=8"], "0123456789ab") == there
    assert identity.folder(tmp_path / "none", ["d=8"], "0123456789ab").name == new.name


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "defaults"),
        (["d=8", "objective.V=5", "logger=none", "paths.outputs=/a/b"], "d-8_objective.V-5"),
        (["encoder.hidden=[64,32]", "+x='a b'"], "encoder.hidden-64-32-_x-a_b"),
        (["force=true", "wait=true", "trainer=ddp", "trainer.devices=2", "seed=1"], "seed-1"),
    ],
)
def test_folder_names_can_be_typed_as_overrides(overrides, name):
    assert identity.readable(overrides) == name
    assert len(identity.readable([f"encoder.key{i}={i}" for i in range(100)])) <= 80
