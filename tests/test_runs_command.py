"""`vae-lab runs`: what there is, read from the runs' records, and what may be done with it."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vae_lab import runs
from vae_lab.cli import main
from vae_lab.commands import runs as command
from vae_lab.runs import record

ROOT = Path(__file__).parents[1]


def make(name, d=2, s2=0.02, likelihood="Gaussian", state="finished", elbo=-50.0, error=None, **more):
    """A run's folder, as training leaves it."""
    folder = Path("outputs") / name
    arguments = [f"d={d}", "logger=none", *more.pop("arguments", [])]
    record.begin(folder, more.pop("fingerprint", name.rpartition("-")[2]), arguments)
    config = {
        "d": d,
        "encoder": {"_target_": "vae_lab.encoders.MLP", "d": d, "hidden": [256, 256]},
        "likelihood": {"_target_": f"vae_lab.likelihoods.{likelihood}"} | ({"s2": s2} if s2 else {}),
        "paths": {"outputs": "outputs", "run": str(folder)},
    }
    runs.write(folder / runs.CONFIG, config)
    if state != "running":
        results = {"test/elbo": elbo, "test/elbo_se": 0.5, "val/elbo": elbo - 1}
        record.end(folder, state, 12.5, results if state == "finished" else {}, elbo, error)
    return folder


@pytest.fixture(autouse=True)
def there(tmp_path, monkeypatch):
    """Five runs, one that was moved aside, and things that are no runs."""
    monkeypatch.chdir(tmp_path)
    make("a-000000000001")
    make("b-000000000002", d=8, elbo=-40.0)
    make("c-000000000003", d=8, s2=0.5, elbo=-45.0)
    make("d-000000000004", d=32, s2=None, likelihood="Bernoulli", state="failed", error="FloatingPointError: rec")
    make("e-000000000005", d=32, state="running")  # its process is dead: this one has not claimed it
    make("a-000000000001.old-1", fingerprint="000000000001")
    Path("outputs/no_run").mkdir()
    Path("outputs/file").touch()


def selected(*filters):
    return [run.folder.name[0] for run in command.select(command.read(Path("outputs")), filters)]


def run(*words):
    """The exit status of `vae-lab runs ...`."""
    try:
        main(["runs", *words])
    except SystemExit as exit:
        return exit.code
    return 0


def wrong(*words):
    code = run(*words)
    assert isinstance(code, str) and code.startswith("error: ") and "\n" not in code
    return code


# --- filters


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ([], "abcde"),
        (["d=8"], "bc"),
        (["d=8.0"], "bc"),
        (["d=2,32"], "ade"),
        (["d!=8"], "ade"),
        (["d!=8,32"], "a"),
        (["d>2", "d<=8"], "bc"),
        (["likelihood.s2<0.1"], "abe"),
        (["likelihood.s2>=5e-1"], "c"),
        (["likelihood=bernoulli"], "d"),
        (["likelihood=gaussian", "d=8"], "bc"),
        (["encoder.hidden=[256,256]"], "abcde"),
        (["encoder.hidden=[256]"], ""),
        (["state=failed"], "d"),
        (["state=partial,failed"], "de"),
        (["test/elbo>-46"], "bc"),
        (["value>=-40"], "b"),
        (["seconds>100"], ""),
        (["fingerprint=000000000003"], "c"),
        (["old=true"], "a"),
        (["outputs/c-000000000003"], "c"),
        (["c-000000000003", "000000000001"], "ac"),
        (["c-000000000003", "d=2"], ""),
        (["a-000000000001.old-1"], "a"),
    ],
)
def test_filters(filters, names):
    assert "".join(sorted(selected(*filters))) == names


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("likelihood.s3<1", "likelihood.s3: no run has this key; did you mean 'likelihood.s2'?"),
        ("sate=failed", "sate: no run has this key; did you mean 'state'?"),
        ("d<x", "d<x: 'x' is no number"),
        ("a-000000000009", "no such run, and no filter; did you mean 'a-000000000001"),
        ("yes=maybe", "yes must be true or false, got 'maybe'"),
    ],
)
def test_what_makes_no_sense_is_one_line(word, message):
    assert message in wrong("rm", word)


# --- the commands


def test_ls_shows_what_differs(capsys):
    assert run("ls") == 0
    header, *rows, counts = capsys.readouterr().out.splitlines()
    assert header.split() == ["run", "state", "d", "likelihood", "likelihood.s2", "val/elbo", "test/elbo", "seconds"]
    assert len(rows) == 5 and counts == "1 partial, 1 failed, 3 finished"
    assert " ".join(rows[1].split()) == "b-000000000002 finished 8 gaussian 0.02 -41.000 -40.000 ± 0.500 12.5"
    assert rows[3].split() == ["d-000000000004", "failed", "32", "bernoulli", "12.5"]
    run("ls", "d=8", "likelihood.s2<0.1")
    assert capsys.readouterr().out.split()[:5] == ["run", "state", "val/elbo", "test/elbo", "seconds"]
    run("ls", "paths.outputs=elsewhere")
    assert capsys.readouterr().out == "no runs\n"


def test_a_run_that_is_being_trained_is_seen(capsys):
    with record.claim(Path("outputs/e-000000000005")):
        run("ls")
        assert "1 running, 1 failed, 3 finished" in capsys.readouterr().out
        run("show", "state=running")
        assert f"running: process {os.getpid()} on" in capsys.readouterr().out


def test_show_tells_everything(capsys):
    assert run("show", "state=failed") == 0
    said = capsys.readouterr().out
    for word in ("vae-lab train d=32 logger=none", "FloatingPointError: rec", "000000000004", "torch", "config.yaml"):
        assert word in said
    run("show", "b-000000000002")
    assert "-40.000 ± 0.500" in capsys.readouterr().out


def test_rm_asks(monkeypatch, capsys):
    before = sorted(os.listdir("outputs"))
    assert "runs rm needs filters" in wrong("rm")
    assert "yes=true must be given" in wrong("rm", "state=failed")
    for answer, gone in (("n\n", set()), ("\n", set()), ("y\n", {"d-000000000004"})):
        monkeypatch.setattr("sys.stdin", io.StringIO(answer))
        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        assert run("rm", "state=failed") == (0 if gone else 1)
        assert set(before) - set(os.listdir("outputs")) == gone
    assert "remove 1 runs" in capsys.readouterr().out


def test_rm_leaves_what_is_running(capsys):
    with record.claim(Path("outputs/e-000000000005")):
        assert run("rm", "d=32", "yes=true") == 1
        assert "not removed" in capsys.readouterr().err
        assert Path("outputs/e-000000000005/config.yaml").exists() and not Path("outputs/d-000000000004").exists()
    assert run("rm", "d=32", "yes=true") == 0
    run("rm", "old=true", "yes=true")
    assert sorted(os.listdir("outputs")) == ["a-000000000001", "b-000000000002", "c-000000000003", "file", "no_run"]
    run("rm", "d=32", "yes=true")
    assert capsys.readouterr().out.endswith("no runs\n")


def test_retry_gives_the_commands_again(capsys, monkeypatch, tmp_path):
    assert run("retry", "print=true") == 0
    assert capsys.readouterr().out.splitlines() == ["vae-lab train d=32 logger=none"] * 2  # failed, and partial
    ran = []

    def fake(words, cwd, check):
        ran.append((words, cwd))
        return subprocess.CompletedProcess(words, len(ran) - 1)

    monkeypatch.setattr(subprocess, "run", fake)
    assert run("retry", "state=failed") == 0
    assert run("retry") == 2
    assert ran[0] == ([sys.executable, "-m", "vae_lab.cli", "train", "d=32", "logger=none"], str(tmp_path))
    assert len(ran) == 3
    run("retry", "state=finished")
    assert "no run has failed or is partial" in capsys.readouterr().out


def test_a_run_is_retried_where_it_was():
    folder = Path("outputs/d-000000000004")
    runs.write(folder / record.RECORD, record.read(folder) | {"cwd": "/nowhere"})
    assert "/nowhere, which is not there" in wrong("retry", "state=failed")


@pytest.mark.parametrize("name", ["ls", "show", "rm", "retry"])
def test_help(name, capsys):
    assert run(name, "--help") == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: vae-lab runs {name} ") and "'likelihood.s2<0.1'" in said
    assert all(f"{key}=" in said for key in command.OPTIONS[name])


def test_a_wrong_word_is_answered(capsys):
    assert "did you mean 'runs ls'" in str(run("lss"))
    assert "runs retry" in capsys.readouterr().out


def test_it_needs_no_torch_and_half_a_run_does_no_harm():
    (Path("outputs/e-000000000005") / runs.CONFIG).unlink()
    code = (
        "import sys; from vae_lab.cli import main; main(sys.argv[1:])\n"
        "assert not {'torch', 'wandb', 'numpy'} & set(sys.modules)"
    )
    words = [sys.executable, "-c", code, "runs", "ls", "d=8"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and "2 finished" in done.stdout, done.stderr
    script = [sys.executable, str(ROOT / "scripts" / "runs.py"), "ls", "state=partial"]
    assert "1 partial" in subprocess.run(script, capture_output=True, text=True, timeout=60, check=True).stdout
