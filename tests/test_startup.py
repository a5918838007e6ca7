"""What commands import, and when: what answers at once imports nothing heavy."""

import shutil
import subprocess
import sys

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from vae_lab import composing, hints
from vae_lab.cli import main
from vae_lab.commands import train
from vae_lab.launch import grid

HEAVY = ["torch", "pytorch_lightning", "wandb", "torchmetrics", "matplotlib", "numpy", "sklearn", "optuna"]


def python(code, *arguments, folder=None):
    words = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=folder, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


ANSWERS = """
import sys
from vae_lab.cli import main
try: main(sys.argv[2:])
except SystemExit: pass
loaded = set(sys.argv[1].split()) & set(sys.modules)
assert not loaded, loaded
"""


@pytest.mark.parametrize(
    "words",
    [
        "",
        "train --help",
        "evaluate --help",
        "tarin",
        "train likelihood=nope",
        "train modle.d=2",
        "train likelihood=bernoulli likelihood.s2=1",
        "runs ls",
        "runs ls state=failed",
        "runs show nothing",
        "runs lss",
    ],
)
def test_what_the_files_tell_needs_no_hydra(words, tmp_path):
    python(ANSWERS, " ".join([*HEAVY, "hydra", "omegaconf"]), *words.split(), folder=tmp_path)


@pytest.mark.parametrize("words", ["train d==", "train --cfg job d=3", "train -m d=2 modle.d=2,3", "train -m d=2 d=="])
def test_what_hydra_tells_needs_no_torch(words, tmp_path):
    python(ANSWERS, " ".join(HEAVY), *words.split(), folder=tmp_path)


FINISHED = """
import sys
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.initialize import initialize_config_dir
from hydra.types import RunMode
from multiprocessing import forkserver
from pathlib import Path
from vae_lab import hints
from vae_lab.cli import main, register_resolvers
from vae_lab.launch.plan import plan
register_resolvers()
with initialize_config_dir(str(hints.CONF), version_base="1.3"):
    config = GlobalHydra.instance().config_loader().load_configuration("train", [], RunMode.MULTIRUN)
    cells = plan(config, [["d=2"], ["d=3"]], build=False)
for cell in cells:
    folder = Path(cell.folder)
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"state": "finished", "value": -1.0, "ended": "", "seconds": 1, "results": {}}')
composed, load = [], ConfigLoaderImpl.load_configuration
ConfigLoaderImpl.load_configuration = lambda *a, **k: (composed.append(k), load(*a, **k))[1]
main(["train", "-m", "d=2,3"])
assert len(composed) == 1
others = {f"vae_lab.launch.{name}" for name in ("look", "optuna", "packed", "ray", "slurm", "warm")}
loaded = {"rich", *others} & set(sys.modules)
assert not loaded, loaded
main(["train", "d=2"])
assert len(composed) == 2
loaded = set(sys.argv[1].split()) & set(sys.modules)
assert not loaded, loaded
assert forkserver._forkserver._forkserver_pid is None
"""


def test_a_sweep_of_finished_cells_imports_and_starts_nothing(tmp_path):
    assert "2 runs: 0 finished, 2 skipped" in python(FINISHED, " ".join(HEAVY), folder=tmp_path)


WRONG = """
import sys
from vae_lab.cli import main
try:
    main(["train", "-m", "d=2,0", "hydra/launcher=pool"])
except SystemExit as stop:
    print(stop)
loaded = set(sys.argv[1].split()) & set(sys.modules)
assert not loaded, loaded
"""


def test_the_values_of_a_sweep_are_checked_where_torch_is_imported_anyway(tmp_path):
    said = python(WRONG, " ".join(HEAVY), folder=tmp_path)
    assert "cell 2 of 2 (d=0): d must be" in said and not any(tmp_path.iterdir()), said


@pytest.fixture
def seen(tmp_path, monkeypatch):
    """What the runs and sweeps of commands are given, in their order."""
    monkeypatch.chdir(tmp_path)
    found = []

    def run(cfg):
        found.append((OmegaConf.to_container(cfg), OmegaConf.to_container(OmegaConf.create(HydraConfig.get()))))

    def sweep(config, launcher, arguments):
        found.append((OmegaConf.to_container(config), list(arguments)))

    monkeypatch.setattr(train, "run", run)
    monkeypatch.setattr(grid, "run", sweep)
    return found


@pytest.mark.parametrize(
    "words",
    [
        "d=3 likelihood=bernoulli",
        "experiment=linear_digits ~callbacks.pictures +trainer.limit_val_batches=2",
        "-m d=2,3 seed=0 hydra/launcher=packed",
        "encoder=mlp,conv --multirun encoder.d=${d} hydra.verbose=true",
    ],
)
def test_a_command_is_given_what_hydra_main_gives_it(words, seen, monkeypatch):
    main(["train", *words.split()])
    main(["train", *words.split(), "--config-name=train"])  # which is for Hydra to understand
    monkeypatch.setattr(sys, "argv", ["train", *sorted(words.split(), key=lambda word: not word.startswith("-"))])
    composing.main("train", train.run)
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("words", [["experiment=many"], ["hydra.mode=MULTIRUN"]])
def test_a_command_is_a_sweep_without_m_where_hydra_mode_says_so(words, seen, tmp_path, monkeypatch):
    shutil.copytree(hints.CONF, tmp_path / "conf")
    monkeypatch.setattr(hints, "CONF", tmp_path / "conf")
    (hints.CONF / "experiment" / "many.yaml").write_text("# @package _global_\nhydra: {mode: MULTIRUN}")
    main(["train", *words, "d=2,3"])
    [(_, arguments)] = seen
    assert arguments == [word for word in [*words, "d=2,3"] if not word.startswith("hydra")]


def test_defaults_lists_may_interpolate(tmp_path):
    for name in ("one", "two"):
        for group in ("a", "b"):
            (tmp_path / group).mkdir(exist_ok=True)
            (tmp_path / group / f"{name}.yaml").write_text(f"{group}: {name}")
    (tmp_path / "train.yaml").write_text("defaults: [{a: one}, {b: '${a}'}, _self_]")
    with composing.quick(), initialize_config_dir(str(tmp_path), version_base="1.3"):
        assert compose("train") == {"a": {"a": "one"}, "b": {"b": "one"}}
        assert compose("train", ["a=two"]) == {"a": {"a": "two"}, "b": {"b": "two"}}


YAML = [
    "a: 1e-3\nb: 1_000\nc: 2001-01-01\nd: [yes, ~, .inf, 0x1f, 1:30, '1', ???]\ne: ${a}\n",
    "a: !!python/object/apply:pathlib.Path [b, c]",
    "a: &x {b: 1}\nc: {<<: *x, d: 2}",
    "# nothing",
    "a: 1\na: 2",
    "a: [1",
    "a: b: c",
    "a: !!python/name:os.system ''",
]


@pytest.mark.parametrize("text", YAML)
def test_yaml_is_read_and_refused_as_omegaconf_does(text, tmp_path):
    (file := tmp_path / "file.yaml").write_text(text)

    def read():
        try:
            return str(OmegaConf.load(file)), str(OmegaConf.create(text))
        except yaml.YAMLError as error:
            return str(error)

    ordinary = read()
    with composing.quick():
        assert read() == ordinary


def test_what_is_parsed_once_is_resolved_anew():
    with composing.quick():
        for d in (2, 3):
            cfg = OmegaConf.create({"d": d, "a": {"b": "${d}, ${oc.select:c.e}", "c": "${..d}"}, "c": {"e": "${d}"}})
            assert (cfg.a.b, cfg.a.c) == (f"{d}, {d}", d)
            cfg.d = 4
            assert (cfg.a.b, cfg.a.c) == ("4, 4", 4)


TRAINS = """
import gc, os, sys
os.environ["WANDB_MODE"] = "offline"
from vae_lab.cli import main
main(["train", "trainer.max_epochs=1", "callbacks=[checkpoint]"])
order = list(sys.modules)
assert max(order.index("wandb"), order.index("wandb.sdk.launch")) < order.index("torch")
assert gc.isenabled() and gc.get_freeze_count() > 100_000
"""


def test_a_training_process_imports_in_the_order_that_takes_least(tmp_path):
    """And without garbage collection: what is imported is looked at neither then nor later."""
    python(TRAINS, folder=tmp_path)


SPARED = """
import gc, sys, types
from vae_lab import garbage
with garbage.spared():
    assert not gc.isenabled()
    sys.modules["torch"] = types.ModuleType("torch")
frozen = gc.get_freeze_count()
assert gc.isenabled() and frozen > 1000
more = [[] for _ in range(1000)]
with garbage.spared():
    assert gc.isenabled()
assert gc.get_freeze_count() <= frozen
"""


def test_garbage_is_collected_but_for_the_first_import():
    python(SPARED)


LOOKS = """
import gc, sys
from vae_lab.launch import look
look.refuse = lambda cells: print("collects", gc.isenabled())
from vae_lab.cli import main
main(["train", "-m", "d=2,3", "check=true", "logger=none"])
"""


def test_a_look_at_a_sweep_keeps_no_garbage(tmp_path):
    """Each architecture has data and a model of its own."""
    assert "collects True" in python(LOOKS, folder=tmp_path)
