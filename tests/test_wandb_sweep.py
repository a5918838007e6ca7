"""The sweep.yaml for the agents of Weights & Biases: what their own code makes of it is our command."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import wandb
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from wandb.wandb_agent import Agent

from vae_lab import hints
from vae_lab.cli import main, register_resolvers
from vae_lab.launch import space
from vae_lab.launch.wandb import sweep
from vae_lab.runs import identity, record

ROOT = Path(__file__).parents[1]
RUN, SWEEP = "q1w2e3r4", "sweep123"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty folder, and the process's environment as it was afterwards."""
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_DIR"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)


def written(*arguments):
    """The sweep.yaml that a command writes."""
    main(["train", "-m", "hydra/sweeper=wandb", *arguments])
    return yaml.safe_load(Path("sweep.yaml").read_text())


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as exit:
        main(["train", "-m", "hydra/sweeper=wandb", *arguments])
    assert exit.value.code not in (0, None) and not Path("sweep.yaml").exists()
    return capsys.readouterr().err + str(exit.value.code)


def agent_runs(content, monkeypatch, **values):
    """The command that W&B's agent starts for one cell, by its own code, and the environment it has."""
    started = []

    class Process:
        def __init__(self, command, env, forward_signals):
            started.append((command, env))

    monkeypatch.setattr("wandb.wandb_agent.AgentProcess", Process)
    monkeypatch.setenv("WANDB_SWEEP_ID", SWEEP)
    agent = Agent(api=None, queue=None, sweep_id=SWEEP)
    agent._sweep_command = list(content["command"])
    args = {name: {"value": value} for name, value in values.items()}
    agent._command_run({"run_id": RUN, "program": content["program"], "args": args})
    [(command, env)] = started
    return command, env


def composed(overrides):
    register_resolvers()
    with initialize_config_dir(str(hints.CONF), version_base="1.3"):
        return compose("train", overrides, return_hydra_config=True)


def test_a_grid_becomes_a_grid_whose_agents_run_our_command(monkeypatch, capsys):
    content = written("d=2,8", "likelihood.s2=0.1,1e-3", "encoder.hidden=[100],[200,200]", "trainer.max_epochs=2")
    assert content["method"] == "grid" and content["metric"] == {"name": "val/elbo", "goal": "maximize"}
    values = {name: parameter["values"] for name, parameter in content["parameters"].items()}
    assert values == {"d": [2, 8], "likelihood.s2": [0.1, 0.001], "encoder.hidden": ["[100]", "[200,200]"]}
    assert "wandb sweep sweep.yaml" in capsys.readouterr().out
    assert not Path("outputs").exists()  # nothing is trained
    chosen = {name: options[-1] for name, options in values.items()}
    command, env = agent_runs(content, monkeypatch, **chosen)
    assert command[:5] == ["/usr/bin/env", "python", "-m", "vae_lab.cli", "train"]
    overrides = command[5:]
    assert not any(word.startswith(("-", "+")) for word in overrides)
    cfg = composed(overrides)
    assert (cfg.d, cfg.likelihood.s2, list(cfg.encoder.hidden), cfg.trainer.max_epochs) == (8, 0.001, [200, 200], 2)
    assert env["WANDB_RUN_ID"] == RUN and env["WANDB_SWEEP_ID"] == SWEEP


def test_a_typo_in_a_sweep_is_refused_by_the_command(monkeypatch):
    content = written("d=2,8")
    command, _ = agent_runs(content, monkeypatch, dd=2)
    done = subprocess.run([sys.executable, *command[2:]], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1 and "no key 'dd'" in done.stderr


def test_under_an_agent_the_wandb_run_is_the_agents_and_the_run_is_ours(monkeypatch):
    cfg = composed(["d=3"])
    mine = identity.fingerprint(cfg)
    assert OmegaConf.select(cfg, "logger.id") == mine
    monkeypatch.setenv("WANDB_RUN_ID", RUN)
    assert OmegaConf.select(composed(["d=3"]), "logger.id") == mine  # a leftover, and no agent
    monkeypatch.setenv("WANDB_SWEEP_ID", SWEEP)
    under = composed(["d=3"])
    assert OmegaConf.select(under, "logger.id") == RUN
    assert identity.fingerprint(under) == mine and mine in under.hydra.run.dir


def test_an_agent_gets_its_run_also_where_ours_is_finished(monkeypatch):
    """Trained without W&B, then asked for by an agent: not trained again, and the agent's run has the results."""
    quick = ["trainer.max_epochs=1", "callbacks=[checkpoint]", "d=3"]
    main(["train", *quick, "logger=none"])
    [run] = [path.parent for path in Path("outputs").glob("*/run.json")]
    before = record.read(run)
    command, env = agent_runs(written("d=2,3", *quick[:2]), monkeypatch, d=3)
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.setenv(name, env[name])
    monkeypatch.setenv("WANDB_MODE", "offline")
    main(command[4:])
    assert record.read(run) == before
    [file] = run.parent.glob("wandb/offline-run-*/*.wandb")
    assert file.name == f"run-{RUN}.wandb"
    leet = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", str(file), "--json"]
    said = subprocess.run(leet, capture_output=True, text=True, timeout=120, check=True).stdout
    assert str(before["results"]["val/elbo"]) in said and before["fingerprint"] in said


@pytest.mark.parametrize(
    ("typed", "method", "parameter"),
    [
        ("d=choice(2,8)", None, {"values": [2, 8]}),
        ("d=range(2,9,3)", None, {"values": [2, 5, 8]}),
        ("d=range(1,10)", "bayes", {"distribution": "int_uniform", "min": 1, "max": 9}),
        ("d=int(interval(1,64))", "bayes", {"distribution": "int_uniform", "min": 1, "max": 64}),
        ("s=interval(0,1)", None, {"distribution": "uniform", "min": 0.0, "max": 1.0}),
        ("s=tag(log,interval(1e-3,1))", None, {"distribution": "log_uniform_values", "min": 0.001, "max": 1.0}),
        ("s=range(0.5,2,0.5)", "random", {"values": [0.5, 1.0, 1.5]}),
        ("x=null,true,mlp", None, {"values": ["null", True, "mlp"]}),
    ],
)
def test_parameters_in_wandbs_words(typed, method, parameter):
    axes, fixed = space.split(OverridesParser.create().parse_overrides([typed]))
    content = sweep(axes, fixed, method, "a name")
    [found] = content["parameters"].values()
    assert found == parameter and content["name"] == "a name"
    assert content["method"] == (method or ("bayes" if "interval" in typed else "grid"))
    # each value, as the agent types it, is to Hydra what was asked for
    for value in parameter.get("values", ()):
        expected = OverridesParser.create().parse_override(f"x={space.typed(value)}").value()
        assert OverridesParser.create().parse_override(f"x={value}").value() == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["d=2"], "nothing is swept"),
        (["likelihood.s2=interval(0.1,1)", "hydra.sweeper.method=grid"], "method must be random or bayes"),
        (["d=2,8", "hydra.sweeper.method=gird"], "method must be one of grid, random, bayes"),
        (["d=tag(log,int(interval(1,64)))"], "d must be some values"),
        (["+trainer.limit_train_batches=1,2"], "must be a key that the configuration has"),
        (["likelihood=bernoulli", "likelihood.s2=0.1,1"], "no key 's2' in the chosen likelihood"),
    ],
)
def test_a_sweep_that_could_not_run_is_refused(arguments, message, capsys):
    assert message in refused(capsys, *arguments)


def test_the_script_writes_without_torch(tmp_path):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['wandb_sweep.py', '-m', 'd=2,8', 'hydra.sweeper.file={tmp_path}/a/b.yaml']\n"
        f"runpy.run_path({str(ROOT / 'scripts' / 'wandb_sweep.py')!r}, run_name='__main__')\n"
        "loaded = {'torch', 'wandb', 'optuna'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load((tmp_path / "a" / "b.yaml").read_text())["parameters"] == {"d": {"values": [2, 8]}}


def test_the_macros_are_those_that_the_agent_knows():
    content = sweep([space.Choice("d", [2, 8])], [], None, None)
    macros = {found for word in content["command"] for found in re.findall(r"^\$\{(\w+)\}$", word)}
    known = wandb.sdk.launch.sweeps.utils.create_sweep_command_args({"args": {}})
    assert macros - {"env", "interpreter"} <= set(known)
