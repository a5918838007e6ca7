"""Stopping and continuing: a run that was stopped, at any moment, comes to what it would have come to."""

import copy
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import WandbLogger
from torch import nn

from vae_lab import decoders, encoders, likelihoods, objectives, priors, schedules
from vae_lab.callbacks import AtomicIO, Checkpoint, History, Preemption
from vae_lab.callbacks.checkpoint import copied
from vae_lab.callbacks.history import latest, rows
from vae_lab.data.module import InMemory
from vae_lab.data.preprocessing import BinarisedDynamic, Raw
from vae_lab.data.sampling import Shuffled, WithReplacement
from vae_lab.data.sources import Pixels, Source, Splits
from vae_lab.lit import LitVAE
from vae_lab.runs.record import Preempted
from vae_lab.vae import VAE

ROOT = Path(__file__).parents[1]
EPOCHS, STEPS, BLOCK = 3, 7, 2  # 53 data in batches of 8: seven steps an epoch, in blocks of 2, 2, 2 and 1


class Tiny(Source):
    """Random images: 53 to train on, 31 to validate, 17 to test, so that no batch size divides them."""

    shape, levels = (1, 4, 3), 256

    def load(self):
        pixels = torch.randint(256, (101, *self.shape), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
        return Splits(*(Pixels(x) for x in pixels.split([53, 31, 17])))


S, D = Tiny.shape, 2


def adam(params):
    return torch.optim.Adam(params, 1e-2, fused=True)


class Settings:
    """A kind of run."""

    def __init__(self, likelihood=None, encoder=None, objective=None, schedule=None, preprocessing=None, replace=False):
        self.likelihood = likelihood or partial(likelihoods.Gaussian, S, 0.5)
        self.encoder = encoder or partial(encoders.MLP, S, D, [5], "tanh")
        self.objective = objective or partial(objectives.Elbo, 2)
        self.schedule = schedule or schedules.Constant()
        self.preprocessing = preprocessing or Raw()
        self.sampling = (WithReplacement if replace else Shuffled)(8, 10, BLOCK)

    def lit(self):
        torch.manual_seed(0)
        vae = VAE(self.encoder(), decoders.MLP(S, D, [5], "tanh"), self.likelihood(), priors.StandardNormal(D))
        return LitVAE(vae, self.objective(), adam, self.schedule, seed=0, log_every=1)

    def data(self):
        return InMemory(Tiny(), self.preprocessing, self.sampling, seed=0)


SETTINGS = {
    "default": Settings(),
    "redrawn": Settings(partial(likelihoods.Bernoulli, S), preprocessing=BinarisedDynamic(0), replace=True),
    "optimal": Settings(
        partial(likelihoods.GaussianOptimal, S, 0.1),
        objective=partial(objectives.Elbo, 1, warmup=30),
        schedule=schedules.Cosine(0.1, 0.0),
    ),
    "free": Settings(encoder=partial(encoders.Free, S, D, 53, 0.05, 3)),
    "iwae": Settings(objective=partial(objectives.Iwae, 3)),
}


class Stop(pl.Callback):
    """Raises in a hook, the n-th time that it is called: the files are then what a kill would have left."""

    def __init__(self, hook, n):
        self.left = n
        setattr(self, hook, self.count)

    def count(self, *args):
        self.left -= 1
        if self.left == 0:
            raise Killed


class Killed(Exception):
    pass


def fit(folder, settings, *callbacks, every_seconds=1e9, resume=None, test=True, monitor="val/elbo", **trainer):
    """Trains and tests in `folder`; from its last checkpoint if there is one."""
    checkpoint = Checkpoint(folder, monitor, "max", every_seconds)
    lit, data = settings.lit(), settings.data()
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=[*callbacks, checkpoint],
        logger=[*trainer.pop("loggers", []), History(folder / "history.jsonl")],
        plugins=[AtomicIO()],
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **{"max_epochs": EPOCHS} | trainer,
    )
    last = folder / "last.ckpt"
    trainer.fit(lit, datamodule=data, ckpt_path=last if last.exists() else None, weights_only=True)
    assert trainer.global_step == torch.load(last, weights_only=True)["global_step"]
    if test:
        trainer.test(lit, datamodule=data, ckpt_path="best", weights_only=True, verbose=False)
    return checkpoint


def contents(folder):
    """Everything that a run comes to: weights, optimisers, schedule, best weights, score, and all that it logged."""
    last, best = (torch.load(folder / f"{name}.ckpt", weights_only=True) for name in ("last", "best"))
    position = {k: v for k, v in last["position"].items() if k != "seconds"}
    return [
        *(last["state_dict"], last["optimizer_states"], last["lr_schedulers"], last["callbacks"], position),
        *(best["state_dict"], [record(row) for row in rows(folder / "history.jsonl")]),
    ]


def record(row):
    return {k: v for k, v in row.items() if k != "train/images_per_second"}


def same(a, b):
    """Equal in every bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(v, b[k]) for k, v in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a kind of run comes to if nothing stops it; trained once."""
    known = {}

    def train(name, **trainer):
        key = name, *sorted(trainer.items())
        if key not in known:
            folder = tmp_path_factory.mktemp(name)
            fit(folder, SETTINGS[name], **trainer)
            known[key] = contents(folder)
        return known[key]

    return train


HOOKS = {
    "block_start": ("on_train_batch_start", range(1, 13, 3)),
    "block_end": ("on_train_batch_end", range(1, 13)),
    "validation": ("on_validation_batch_end", range(2, 13, 5)),
    "validated": ("on_validation_end", range(1, 4)),
    "epoch_end": ("on_train_epoch_end", range(1, 4)),
    "epoch_start": ("on_train_epoch_start", range(1, 4)),
    "test": ("on_test_batch_end", range(1, 3)),
}


def test_a_copied_checkpoint_shares_nothing_with_what_is_trained():
    model = nn.BatchNorm1d(3)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(4, 3)).sum().backward()
    optimizer.step()
    held = {"state_dict": model.state_dict(), "optimizer_states": [optimizer.state_dict()], "epoch": 2, "why": None}
    wanted, found = copy.deepcopy(held), copied(held)
    assert found["state_dict"]._metadata == model.state_dict()._metadata  # by which torch knows older checkpoints
    with torch.no_grad():
        for v in (*model.state_dict().values(), *optimizer.state_dict()["state"][0].values()):
            v.add_(1)
    assert list(found) == list(wanted) and found["epoch"] == 2
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("every_seconds", [1e-9, 1e9], ids=["every_block", "every_epoch"])
@pytest.mark.parametrize("name", SETTINGS)
def test_stopped_twice_anywhere_and_continued(tmp_path, whole, name, every_seconds):
    choose = random.Random(f"{name} {every_seconds}")
    for k in range(2):
        for hook in choose.sample(sorted(HOOKS), 2):
            method, times = HOOKS[hook]
            with suppress(Killed):
                fit(tmp_path / str(k), SETTINGS[name], Stop(method, choose.choice(times)), every_seconds=every_seconds)
        fit(tmp_path / str(k), SETTINGS[name], every_seconds=every_seconds)
        assert same(contents(tmp_path / str(k)), whole(name)), f"{name}, try {k}"


@pytest.mark.parametrize("hook", HOOKS)
def test_stopped_in_every_hook(tmp_path, whole, hook):
    method, times = HOOKS[hook]
    for n in times:
        folder = tmp_path / str(n)
        with pytest.raises(Killed):
            fit(folder, SETTINGS["default"], Stop(method, n), every_seconds=1e-9)
        fit(folder, SETTINGS["default"], every_seconds=1e-9)
        assert same(contents(folder), whole("default")), f"{method} {n}"


@pytest.mark.parametrize("max_steps", [7, 10, 14])
def test_a_limit_of_steps(tmp_path, whole, max_steps):
    """At the end of an epoch too, where Lightning would take the next epoch of a run that goes on for done."""
    for n in (2, 4, 5):
        folder = tmp_path / str(n)
        try:
            fit(folder, SETTINGS["default"], Stop("on_train_batch_start", n), every_seconds=1e-9, max_steps=max_steps)
        except Killed:
            fit(folder, SETTINGS["default"], every_seconds=1e-9, max_steps=max_steps)
        assert same(contents(folder), whole("default", max_steps=max_steps))


def test_a_finished_fit_is_not_trained_again(tmp_path):
    fit(tmp_path, SETTINGS["default"])
    before, stop = contents(tmp_path), Stop("on_train_batch_start", 1)
    assert (
        fit(tmp_path, SETTINGS["default"], stop).best_model_score
        == before[3][next(iter(before[3]))]["best_model_score"]
    )
    assert same(contents(tmp_path), before)  # the test's row is there once
    fit(tmp_path, SETTINGS["default"], max_epochs=EPOCHS + 1)  # but it may be made longer
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == (EPOCHS + 1) * STEPS


class Enough(pl.Callback):
    """Stops early, after the second epoch."""

    def on_validation_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch == 1


def test_a_fit_that_was_stopped_early_is_not_taken_up_again(tmp_path):
    with pytest.raises(Killed):
        fit(tmp_path, SETTINGS["default"], Enough(), Stop("on_test_batch_end", 1))
    fit(tmp_path, SETTINGS["default"], Enough(), Stop("on_train_batch_start", 1))
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2 * STEPS


def test_lightnings_own_checkpoints_continue_too(tmp_path, whole):
    """Taken at the end of an epoch, before its metrics are logged."""
    from pytorch_lightning.callbacks import ModelCheckpoint

    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    fit(tmp_path / "whole", SETTINGS["default"], keep)
    (tmp_path / "again").mkdir()
    (tmp_path / "epoch=1.ckpt").rename(tmp_path / "again" / "last.ckpt")
    fit(tmp_path / "again", SETTINGS["default"])
    assert same(contents(tmp_path / "again")[0], whole("default")[0])


def test_torchs_own_random_numbers_go_on(tmp_path):
    """No component of ours draws from them; one of the user's may, as dropout does."""
    settings = Settings()
    make = settings.lit

    def lit():
        lit = make()
        lit.vae.encoder.net.append(torch.nn.Dropout(0.3))
        return lit

    settings.lit = lit
    fit(tmp_path / "whole", settings)
    with pytest.raises(Killed):
        fit(tmp_path / "stopped", settings, Stop("on_train_batch_start", 7), every_seconds=1e-9)
    torch.rand(100)
    fit(tmp_path / "stopped", settings, every_seconds=1e-9)
    assert same(contents(tmp_path / "stopped"), contents(tmp_path / "whole"))


# --- files


def test_a_checkpoint_is_tensors_and_plain_containers(tmp_path):
    """A DictConfig among its hyper-parameters would make `weights_only=True` refuse it when the run goes on."""

    def plain(node):
        if isinstance(node, dict):
            return all(isinstance(k, str | int) and plain(v) for k, v in node.items())
        return (
            all(map(plain, node))
            if isinstance(node, list | tuple)
            else isinstance(node, torch.Tensor | str | int | float | None)
        )

    fit(tmp_path, SETTINGS["free"], test=False)
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert plain(last) and "hyper_parameters" not in last


def test_the_best_is_that_of_the_best_epoch_and_the_last_where_nothing_was_measured(tmp_path):
    scores = iter([1.0, 3.0, 2.0])

    class Score(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            pl_module.log("score", self.score)

        def on_train_epoch_start(self, trainer, pl_module):
            self.score = next(scores)

    checkpoint = fit(tmp_path / "a", SETTINGS["default"], Score(), monitor="score")
    best, last = (torch.load(tmp_path / "a" / f"{name}.ckpt", weights_only=True) for name in ("best", "last"))
    assert checkpoint.best_model_score == 3.0 and (best["epoch"], last["epoch"]) == (2, 3)
    for monitor in (None, "nothing"):
        checkpoint = fit(tmp_path / f"{monitor}", SETTINGS["default"], monitor=monitor)
        assert checkpoint.best_model_score is None
        assert (tmp_path / f"{monitor}" / "best.ckpt").samefile(tmp_path / f"{monitor}" / "last.ckpt")


def test_a_save_that_is_cut_short_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicIO().save_checkpoint({"x": torch.zeros(1000)}, path)
    whole = path.read_bytes()

    class Dies:
        def __reduce__(self):
            raise Killed

    with pytest.raises(Killed):
        AtomicIO().save_checkpoint({"x": torch.zeros(1000), "y": Dies()}, path)
    assert path.read_bytes() == whole and list(tmp_path.iterdir()) == [path]


KILLED_WHILE_SAVING = """
import os, sys, torch
from vae_lab.callbacks import AtomicIO
def none(fd): os.kill(os.getpid(), 9)
AtomicIO().save_checkpoint({"n": 1}, sys.argv[1])
os.fsync = none
AtomicIO().save_checkpoint({"n": 2}, sys.argv[1])
"""


def test_what_a_kill_during_a_save_leaves_is_cleaned_up(tmp_path):
    path = tmp_path / "last.ckpt"
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_SAVING, str(path)], check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL and torch.load(path, weights_only=True) == {"n": 1}
    [leftover] = tmp_path.glob(".last.ckpt.*.tmp")
    path.unlink()
    fit(tmp_path, SETTINGS["default"], max_epochs=1, test=False)
    assert not leftover.exists() and {p.name for p in tmp_path.iterdir()} == {"last.ckpt", "best.ckpt", "history.jsonl"}


def test_history(tmp_path):
    path = tmp_path / "history.jsonl"
    history = History(path)
    for step in (5, 10):
        history.log_metrics({"a": step / 2, "b": math.nan}, step)
    history.log_metrics({"test/a": 1.0}, 10)
    history.finalize("failed")
    with path.open("a") as file:
        file.write('{"step": 15, "a"')  # the process was killed
    assert rows(path)[0] == {"step": 5, "a": 2.5, "b": None} and len(rows(path)) == 3
    again = History(path)
    again.resume(10)
    again.log_metrics({"a": 7.5}, 15)
    assert [row["step"] for row in rows(path)] == [5, 10, 15] and path.read_text().count("\n") == 3
    assert latest(path) == {"a": 7.5, "b": None}
    anew = History(path)
    anew.log_metrics({"a": 1.0}, 1)
    assert rows(path) == [{"step": 1, "a": 1.0}]


def test_history_is_what_another_logger_gets(tmp_path):
    from pytorch_lightning.loggers import CSVLogger

    fit(tmp_path, SETTINGS["default"], loggers=[CSVLogger(tmp_path, name="", version="")])
    header, *lines = (line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines())
    there = [{k: float(v) for k, v in zip(header, line, strict=True) if v} for line in lines]
    merged = {}
    for row in rows(tmp_path / "history.jsonl"):
        merged.setdefault(row["step"], {}).update(row)
    other = {}
    for row in there:
        other.setdefault(int(row["step"]), {}).update(row)
    assert merged.keys() == other.keys()
    for step, row in merged.items():
        assert row == pytest.approx(other[step])


# --- signals. Lightning 2.6 answers SIGTERM by exit status 0, and saves nothing in mid-epoch


class Send(pl.Callback):
    """Sends this process a signal in a hook, the n-th time that it is called."""

    def __init__(self, number, hook, n):
        self.number, self.left = number, n
        setattr(self, hook, self.count)

    def count(self, *args):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(self.number)  # in this thread


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
@pytest.mark.parametrize(
    ("hook", "n", "step"),
    [
        ("on_train_start", 1, 0),  # nothing is trained, nothing saved
        ("on_train_batch_start", 1, 2),  # after the first block
        ("on_train_batch_start", 6, 11),
        ("on_train_batch_start", 4, 7),  # before the epoch's last block: once the epoch is whole
        ("on_validation_batch_end", 7, 14),
        ("on_validation_batch_end", 12, 21),  # the fit is over, but not tested
        ("on_test_batch_start", 1, 21),
    ],
)
def test_a_signal_saves_and_stops(tmp_path, whole, number, hook, n, step):
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)}
    with pytest.raises(Preempted) as stopped:
        fit(tmp_path, SETTINGS["default"], Preemption(), Send(number, hook, n))
    assert stopped.value.signal == number
    assert {s: signal.getsignal(s) for s in before} == before
    last = tmp_path / "last.ckpt"
    assert (torch.load(last, weights_only=True)["global_step"] if last.exists() else 0) == step
    fit(tmp_path, SETTINGS["default"], Preemption())
    assert same(contents(tmp_path), whole("default"))
    assert {s: signal.getsignal(s) for s in before} == before


def test_a_handler_that_was_there_is_called_after_the_save(tmp_path):
    called = []

    def handler(number, frame):
        called.append((number, torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"]))

    before = signal.signal(signal.SIGUSR2, handler)
    try:
        with pytest.raises(Preempted):
            fit(tmp_path, SETTINGS["default"], Preemption(), Send(signal.SIGUSR2, "on_train_batch_start", 6))
        assert called == [(signal.SIGUSR2, 11)] and signal.getsignal(signal.SIGUSR2) is handler
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_second_interrupt_stops_at_once(tmp_path):
    twice = [Send(signal.SIGINT, "on_validation_batch_start", n) for n in (1, 2)]
    with pytest.raises(Preempted):
        fit(tmp_path, SETTINGS["default"], Preemption(), *twice, Stop("on_validation_end", 1))
    assert not (tmp_path / "last.ckpt").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# --- Weights & Biases: the run goes on under its id in a second folder, whose rows begin after the checkpoint


def wandb_rows(folder):
    """Rows of each folder that an offline run left, oldest first, as W&B's own reader sees them."""
    found = []
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime):
        leet = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", str(file), "--json"]
        lines = subprocess.run(leet, capture_output=True, text=True, timeout=120, check=True).stdout.splitlines()
        found.append([record["history"]["item"] for record in map(json.loads, lines) if record["type"] == "history"])
    return found


def by_step(found):
    """The metrics at each step. W&B draws a curve over trainer/global_step; of a step logged twice, the later row."""
    merged = {}
    for row in found:
        values = {k: v for k, v in record(row).items() if not k.startswith("_") and k != "trainer/global_step"}
        merged.setdefault(row["trainer/global_step"], {}).update(values)
    return merged


def test_a_resumed_offline_wandb_run_has_no_gaps(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CONSOLE", "off")

    def train(folder, *callbacks):
        logger = WandbLogger(id="an-id", save_dir=folder, offline=True, resume="allow", mode="offline")
        try:
            fit(folder, SETTINGS["default"], *callbacks, loggers=[logger])
        finally:
            wandb.finish()

    train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "stopped", Stop("on_train_batch_start", 8))
    step = torch.load(tmp_path / "stopped" / "last.ckpt", weights_only=True)["global_step"]
    time.sleep(1.1)  # W&B names a folder by the second
    train(tmp_path / "stopped")
    [alone] = wandb_rows(tmp_path / "whole")
    first, second = wandb_rows(tmp_path / "stopped")
    assert {file.name for file in (tmp_path / "stopped" / "wandb").glob("*/*.wandb")} == {"run-an-id.wandb"}
    assert by_step(first + second) == by_step(alone)
    assert step == 7 < max(by_step(first)) == 13 and min(by_step(second)) == 8  # steps 8 to 13 were made twice
    again = by_step(second)
    assert all(again[s] == values for s, values in by_step(first).items() if s > step)
    assert len({row["trainer/global_step"] for row in second if "train/elbo_step" in row}) == sum(
        "train/elbo_step" in row for row in second
    )


# --- as a user runs it: processes of their own, ended by signals

QUICK = ["trainer.max_epochs=40", "trainer.log_every_n_steps=10", "callbacks=[checkpoint]", "sampling.block=1"]
QUICK += ["callbacks.checkpoint.every_seconds=0.01", "optimizer.lr=0.01"]


def start(folder, *overrides):
    """The command `train`, in a process group of its own; its output goes to a file."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | {"NETRC": os.devnull}
    environment |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *QUICK, *overrides, f"paths.outputs={folder}"]
    with (folder / "output.txt").open("a") as output:
        return subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=folder, start_new_session=True
        )


def run_in(folder):
    [record] = folder.glob("*/run.json")
    return record.parent


def wait_for_rows(process, folder, n):
    """Until the run has logged n rows."""
    while process.poll() is None and sum(len(rows(path)) for path in folder.glob("*/history.jsonl")) < n:
        time.sleep(0.005)
    assert process.returncode is None, (folder / "output.txt").read_text()


def finish(folder, *overrides):
    assert start(folder, *overrides).wait(300) == 0, (folder / "output.txt").read_text()
    run = run_in(folder)
    assert json.loads((run / "run.json").read_text())["state"] == "finished"
    return run


@pytest.fixture(scope="module")
def unstopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unstopped")
    return finish(folder, "logger=none")


def results(run):
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    logged = [record(row) for row in rows(run / "history.jsonl")]
    return [
        last["state_dict"],
        last["optimizer_states"],
        logged,
        record(json.loads((run / "metrics.json").read_text())),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status", "state"),
    [
        (signal.SIGTERM, 143, "partial"),
        (signal.SIGUSR1, 143, "partial"),
        (signal.SIGINT, 130, "partial"),
        (signal.SIGKILL, -9, "partial"),
    ],
)
def test_a_process_that_is_stopped_goes_on_where_it_was(tmp_path, unstopped, number, status, state):
    from vae_lab.runs import record as records

    process = start(tmp_path, "logger=none")
    wait_for_rows(process, tmp_path, 30)
    os.kill(process.pid, number)
    assert process.wait(60) == status, (tmp_path / "output.txt").read_text()
    run = run_in(tmp_path)
    assert records.state(run) == state
    step = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert 0 < step < 40 * 13
    if number == signal.SIGKILL:  # of which W&B's own file has lost the last 32 KiB
        assert len(rows(run / "history.jsonl")) >= 30
    else:
        assert 0 <= step - rows(run / "history.jsonl")[-1]["step"] < 10  # nothing was trained that was not saved
    assert same(results(finish(tmp_path, "logger=none")), results(unstopped))


@pytest.mark.slow
def test_torture(tmp_path):
    """The short form; `scripts/torture.py --kills 100` is the long one."""
    script = [
        sys.executable,
        str(ROOT / "scripts" / "torture.py"),
        "--fork",
        "--kills",
        "6",
        "--runs",
        "",
        "objective=iwae",
    ]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0 and "6 kills" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_two_processes_stop_together_and_go_on(tmp_path):
    """The signal comes to one of them."""
    both = ["logger=none", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp"]
    both += ["trainer.max_epochs=8"]
    (tmp_path / "whole").mkdir()
    whole = finish(tmp_path / "whole", *both)
    (tmp_path / "stopped").mkdir()
    process = start(tmp_path / "stopped", *both)
    wait_for_rows(process, tmp_path / "stopped", 5)
    process.terminate()
    assert process.wait(60) == 143, (tmp_path / "stopped" / "output.txt").read_text()
    again = finish(tmp_path / "stopped", *both)
    for name in ("last", "best"):
        a, b = (torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True) for run in (again, whole))
        assert same(a["state_dict"], b["state_dict"]) and same(a["optimizer_states"], b["optimizer_states"])
    logged, others = ([record(row) for row in rows(run / "history.jsonl")] for run in (again, whole))
    assert [row.keys() for row in logged] == [row.keys() for row in others]
    for row, other in zip(logged, others, strict=True):  # sums over data are taken in another order
        assert row == pytest.approx(other, rel=1e-6)
