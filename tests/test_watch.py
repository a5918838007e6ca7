"""`vae-lab runs watch`: what is running, from the files alone."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from vae_lab import runs
from vae_lab.cli import main
from vae_lab.commands import watch
from vae_lab.runs import record, sweeps

ROOT = Path(__file__).parents[1]
OUTPUTS = Path("outputs")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def begun(name, epochs=0, steps=13, age=0.0, **trainer):
    """The folder of a run whose training began `age` seconds ago and has had so many epochs."""
    folder = OUTPUTS / name
    record.begin(folder, name, [f"d={name}", "logger=none", "seed=1"])
    runs.write(folder / runs.CONFIG, {"trainer": {"max_epochs": 10, "max_steps": -1} | trainer})
    os.utime(folder / record.RECORD, (time.time() - age,) * 2)
    rows = []
    for epoch in range(1, epochs + 1):
        rows += [{"step": epoch * steps, "val/elbo": -100.0 / epoch}]
        rows += [{"step": epoch * steps, "train/elbo": -1.0, "train/images_per_second": 1000.0 * epoch}]
    (folder / runs.HISTORY).write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 9')
    return folder


def ended(folder, state, **more):
    record.end(folder, state, 30.0, **more)


def cells(*names):
    return [{"run": name, "overrides": [f"d={name}", "seed=1"]} for name in names]


def printed(**options):
    """What `watch` prints where there is no terminal."""
    console = Console(file=io.StringIO(), width=120)
    assert watch.watch(OUTPUTS, True, console, **options) == 0
    return console.file.getvalue()


def test_a_sweeps_cells_as_their_files_tell():
    begun("2", epochs=4, age=20.0)
    ended(begun("3", epochs=10), "finished", results={"val/elbo": -5.0, "test/elbo": -6.0}, value=-5.0)
    ended(begun("4"), "failed", error="FloatingPointError: rec [not] finite")
    (OUTPUTS / "4" / runs.LOG).write_text("$ vae-lab train\n\nfirst\n[bold]last\n")
    ended(begun("5", epochs=1), "partial")
    (OUTPUTS / "7").mkdir()
    (OUTPUTS / "7" / runs.LOG).touch()
    note = [*cells("2", "3", "4", "5", "6", "7"), *cells("2")]
    with record.claim(OUTPUTS / "2"), sweeps.named("my-sweep", ["d"]), sweeps.noted(OUTPUTS, note, 2):
        [view] = watch.look(OUTPUTS)
        said = printed()
    assert view.title == "my-sweep" and view.slots == 2
    seen = {run.name: run for run in view.seen}
    assert {name: run.state for name, run in seen.items()} == {
        **{"2": "running", "3": "finished", "4": "failed", "5": "partial", "6": "waiting", "7": "starting"},
    }
    two = seen["2"]
    assert (two.epochs, two.of, two.elbo, two.rate) == (4, 10, -25.0, 4000.0)
    # four epochs in twenty seconds: six more take thirty
    assert two.left == pytest.approx(30.0, abs=3.0) and two.seconds == pytest.approx(20.0, abs=3.0)
    assert seen["3"].elbo == -5.0 and seen["3"].seconds == 30.0 and seen["6"].epochs == 0
    assert seen["4"].error == "FloatingPointError: rec [not] finite" and seen["4"].log[-1] == "[bold]last"
    for words in (
        "6 runs: 1 finished, 1 running, 1 starting, 1 failed, 1 partial, 1 waiting",
        "4/10",
        "-25.000",
        "4,000",
    ):
        assert words in said
    assert "failed  d=4: FloatingPointError: rec [not] finite" in said and "  [bold]last" in said
    assert "seed=1" not in said  # all have that


def test_when_nothing_runs_it_says_so_and_a_dead_sweeps_note_is_no_sweep():
    assert "nothing is running" in printed()  # there is not even the folder
    ended(begun("3"), "finished")
    dead = OUTPUTS / sweeps.FOLDER / "elsewhere-1"
    runs.write(dead / sweeps.FILE, {"name": "dead", "slots": 1, "cells": cells("3", "9")})
    runs.write(dead / record.LOCK, {"host": "elsewhere", "pid": 1, "born": None, "heartbeat": time.time() - 1000})
    assert "nothing is running" in printed()
    with sweeps.noted(OUTPUTS, cells("3"), 1):
        assert not dead.exists()  # the next sweep removes it
        assert [note["name"] for note in sweeps.running(OUTPUTS)] == [None]
    assert not (OUTPUTS / sweeps.FOLDER).exists()


def test_runs_outside_of_a_sweep():
    begun("7", epochs=2, max_steps=65, max_epochs=-1)
    begun("8", max_epochs=None)
    with (
        record.claim(OUTPUTS / "7"),
        record.claim(OUTPUTS / "8"),
        record.claim(OUTPUTS / ".a-study"),
        sweeps.noted(OUTPUTS, cells("1"), 1),
    ):
        sweep, others = watch.look(OUTPUTS)
    assert [run.state for run in sweep.seen] == ["waiting"]
    assert {run.name: (run.state, run.of) for run in others.seen} == {"7": ("running", 5.0), "8": ("running", None)}
    assert others.seen[0].words == "d=7 seed=1"


def test_half_a_folder_does_no_harm():
    folder = begun("2", epochs=1)
    (folder / runs.CONFIG).write_text("trainer: [")
    (folder / runs.HISTORY).write_text('{"step": 1, "val/elbo": 2}\nnonsense\n[1]\n')
    with record.claim(folder):
        [view] = watch.look(OUTPUTS)
    assert (view.seen[0].state, view.seen[0].of, view.seen[0].epochs) == ("running", None, 0)


def test_a_long_sweep_fits_the_terminal():
    many = [watch.Seen(str(i), f"d={i}", "waiting", 0, None, None, None, None, 0.0, None, []) for i in range(100)]
    console = Console(file=io.StringIO(), width=80, height=20)
    console.print(watch.shown(watch.View("x" * 200, 2, many), 10))
    lines = console.file.getvalue().splitlines()
    assert len(lines) < 20 and "and 90 more" in lines[-1] and all(len(line) <= 80 for line in lines)


def test_on_a_terminal_it_follows_to_the_end(monkeypatch):
    folder = begun("2", epochs=3)
    claim = record.claim(folder)
    claim.__enter__()
    looks = []

    def pause(seconds):
        looks.append(seconds)
        if len(looks) == 2:
            claim.__exit__(None, None, None)
            ended(folder, "finished", results={"val/elbo": -7.0})

    monkeypatch.setattr(watch.time, "sleep", pause)
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=30)
    assert watch.watch(OUTPUTS, False, console) == 0
    said = console.file.getvalue()
    assert "3/10" in said and "-33.333" in said  # while it ran
    end = said[said.index("they have ended") :]
    assert "finished" in end and "-7.000" in end and end.rstrip().endswith("nothing is running")


def test_the_command(capsys):
    begun("2", epochs=3)
    with record.claim(OUTPUTS / "2"):
        main(["runs", "watch"])
        main(["runs", "watch", "once=true", "paths.outputs=nowhere"])
    said = capsys.readouterr().out
    assert "3/10" in said and said.endswith("nothing is running\n")
    for words, message in ((["d=2"], "d=2: runs watch takes no filters"), (["once=3"], "once must be true or false")):
        with pytest.raises(SystemExit) as exit:
            main(["runs", "watch", *words])
        assert message in str(exit.value.code)


@pytest.mark.slow
def test_it_follows_a_sweep_from_another_process_without_torch():
    script = [sys.executable, str(ROOT / "scripts" / "train.py"), "-m", "d=2,3,4", "trainer.max_epochs=100000"]
    quiet = ["logger=none", "engine=eager", "callbacks=[checkpoint]", "hydra.launcher.threads=64"]  # one at a time
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    sweep = subprocess.Popen([*script, *quiet], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
    try:
        until = time.monotonic() + 120
        while not any(len(run.read_text().splitlines()) > 3 for run in OUTPUTS.glob(f"*/{runs.HISTORY}")):
            assert time.monotonic() < until and sweep.poll() is None
            time.sleep(0.1)
        code = (
            "import sys; from vae_lab.cli import main; main(sys.argv[1:])\n"
            "assert not {'torch', 'wandb', 'numpy'} & set(sys.modules)"
        )
        seen = subprocess.run(
            [sys.executable, "-c", code, "runs", "watch"], capture_output=True, text=True, timeout=60, check=False
        )
    finally:
        sweep.send_signal(signal.SIGTERM)
        status = sweep.wait(120)
    assert seen.returncode == 0, seen.stderr
    assert "d-2-3-4_" in seen.stdout and "3 runs: 1 running, 2 waiting" in seen.stdout
    assert "/100000 " in seen.stdout and "d=4" in seen.stdout
    assert status == 143 and not (OUTPUTS / sweeps.FOLDER).exists()
    assert "nothing is running" in printed()
