"""A sweep's plan: every cell as Hydra would compose it, what is wrong with it, and how far it has come."""

import json
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.initialize import initialize_config_dir
from hydra.types import RunMode
from omegaconf import OmegaConf

from vae_lab import hints
from vae_lab.cli import main, register_resolvers
from vae_lab.launch.plan import configs, plan, refuse
from vae_lab.runs import identity


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """A sweep's configuration, as Hydra composes it for `-m`, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    register_resolvers()
    with initialize_config_dir(str(hints.CONF), version_base="1.3"):

        def config(*overrides):
            return GlobalHydra.instance().config_loader().load_configuration("train", list(overrides), RunMode.MULTIRUN)

        yield config


CELLS = {
    "values": ["d=3", "likelihood.s2=1e-3", "objective.V=5", "encoder.hidden=[64,32]", "trainer.max_time=null"],
    "groups": ["encoder=conv", "likelihood=bernoulli", "d=4", "experiment=linear_digits", "prior=vamp"],
    "a list of options": ["callbacks=[checkpoint,early_stopping]", "callbacks.early_stopping.patience=3"],
    "added and taken away": ["+trainer.limit_val_batches=2", "~callbacks.pictures", "likelihood.s2=0.1"],
    "added twice": ["++trainer.limit_val_batches=2", "trainer.limit_val_batches=3"],
    "taken away and added": ["~likelihood.s2", "+likelihood.s2=7"],
    "quoted": ["logger.name='a, b=c'", "logger.tags=[x,'y z']", "data=arrays", "data.root='/a b'"],
    "interpolated": ["encoder.hidden=${decoder.hidden}", "decoder.hidden=[${d}]", "d=5"],
    "a mapping": ["likelihood={s2: 0.5}", "sampling={batch_size: 10}"],
    "an option twice": ["prior=vamp", "prior=mixture", "prior.components=3"],
}


def test_cells_are_what_hydra_composes(sweep):
    """Also when one set of options has served other cells before."""
    config = sweep("d=1,2")
    twice = [*CELLS.values(), *([*cell, "seed=3"] for cell in CELLS.values()), []]
    for overrides, found in zip(twice, configs(config, twice), strict=True):
        cfg = GlobalHydra.instance().config_loader().load_sweep_config(config, overrides)
        expected = OmegaConf.to_container(cfg)
        del expected["hydra"]
        assert OmegaConf.to_container(found) == expected, overrides


SWEEPS = {
    # what is typed, and how often Hydra composes for its cells: not for options that the sweep itself has
    "d=2,3 seed=range(3) paths.outputs=/tmp/a": 0,
    "likelihood.s2=1e-3,1 encoder.hidden=[64,32] objective={V:3} +trainer.limit_val_batches=2": 0,
    "experiment=linear_digits prior=vamp seed=0,1 prior.components=3,4": 0,
    "'~callbacks.pictures' '+a.b=1,2' ++trainer.max_steps=7 seed=0,1": 0,
    "'~logger' d=2,3 encoder.d=4 prior.d=5,6": 0,
    "'encoder.hidden=${decoder.hidden}' 'decoder.hidden=[${d}],[4]' d=2,3": 0,
    """logger.name="'a, b=c','d'" logger.tags="[x,'y z']" trainer.max_time=null""": 0,
    "likelihood=gaussian,bernoulli d=2 prior.d=3,4": 2,
    "experiment=linear_digits,linear_fashion d=2,3 optimizer.lr=1e-3": 2,
    "callbacks=[checkpoint],[checkpoint,early_stopping] seed=1": 2,
    "hydra.searchpath=[] d=2,3": 0,
    # the order counts, or might
    "optimizer={lr:1e-2} optimizer.lr=1,2": 1,
    "optimizer.lr=1,2 optimizer={lr:1e-2}": 1,
    "d=2 d=3 seed=0,1": 1,
}


@pytest.mark.parametrize("typed", SWEEPS)
def test_a_sweep_is_what_hydra_composes(sweep, typed, monkeypatch):
    """Every cell, its identity, and that no other key can be set in it."""
    words, asked, load = shlex.split(typed), [], ConfigLoaderImpl.load_sweep_config
    config = sweep(*words)
    task = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    [cells] = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(task), None)
    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", lambda self, *a: (asked.append(a[1]), load(self, *a))[1])
    for overrides, found in zip(cells, configs(config, cells), strict=True):
        expected = compose("train", overrides)
        assert OmegaConf.to_container(found) == OmegaConf.to_container(expected), overrides
        assert identity.fingerprint(found) == identity.fingerprint(expected)
        assert OmegaConf.is_struct(found)
    assert len(cells) > 1 and len(asked) == SWEEPS[typed]


def test_a_sweep_may_leave_a_group_open_that_its_cells_may_not(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "one.yaml").write_text("a: 1")
    (tmp_path / "train.yaml").write_text("defaults: [_self_, {part: '???'}]\nx: 1")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration("train", ["x=1,2"], RunMode.MULTIRUN)
        wrong, right = configs(config, [["x=1"], ["x=1", "part=one"]])
    assert "You must specify 'part'" in str(wrong)
    assert right == {"x": 1, "part": {"a": 1}}


WRONG = {
    "likelihood=nope": "likelihood=nope: no such option",
    "modle.d=2": "no key 'modle.d'",
    "~likelihood.s3": "Could not delete from config",
    "likelihood=bernoulli likelihood.s2=0.1": "no key 's2' in the chosen likelihood",
    "d==": "d==: Error parsing override 'd=='",
    "d=0": "d must be a whole number >= 1, got 0",
    "likelihood.s2=-1": "likelihood.s2 must be a finite number > 0, got -1",
    "objective.V=0": "objective.V must be a whole number >= 1, got 0",
    "encoder=linear posterior=full": "posterior must be diagonal where the encoder takes none",
    "decoder.d=3": "d must be the same for encoder, decoder, prior",
    "prior=vamp classes=10": "classes must be 0 for the vamp prior",
    "sampling.batch_size=0": "sampling.batch_size must be a whole number >= 1, got 0",
    "data=arrays": "data.root must be given",
    "data=arrays data.root=/nowhere.npy": "data.root must be a .npy or .npz file",
}


def test_what_is_wrong_with_a_cell(sweep, unchecked):
    cells = plan(sweep(), [["d=1"], *(words.split() for words in WRONG), ["d=2"]])
    assert cells[0].error is None and cells[-1].error is None
    for (words, message), cell in zip(WRONG.items(), cells[1:-1], strict=True):
        assert message in (cell.error or ""), words
    with pytest.raises(ValueError, match=r"cell 2 of 16 \(likelihood=nope\): .*; and 11 more; nothing was started"):
        refuse(cells)
    assert not any(Path().iterdir())


def test_one_wrong_cell_stops_the_sweep_before_its_first(tmp_path, monkeypatch, unchecked):
    """With Hydra's own launcher too."""
    monkeypatch.chdir(tmp_path)
    for launcher in ("pool", "basic"):
        with pytest.raises(SystemExit) as stop:
            main(["train", "-m", "likelihood.s2=0.1,-1", "seed=0,1", f"hydra/launcher={launcher}"])
        assert str(stop.value).startswith("error: cell 3 of 4 (likelihood.s2=-1 seed=0): likelihood.s2 must be")
    assert not any(Path().iterdir())


def test_identity_does_not_depend_on_order_or_defaults(sweep):
    a, b, c = plan(sweep(), [["d=2", "seed=1"], ["seed=1", "likelihood.s2=0.02"], ["d=3", "seed=1"]], build=False)
    assert a.fingerprint == b.fingerprint != c.fingerprint
    assert a.folder != b.folder and Path(a.folder).parent == Path("outputs").absolute()


def test_a_cell_knows_how_far_it_has_come(sweep):
    overrides = [["d=2"], ["d=3"], ["d=4"]]
    before = plan(sweep(), overrides, build=False)
    for cell, state in zip(before, ("finished", "running"), strict=False):
        Path(cell.folder).mkdir(parents=True)
        (Path(cell.folder) / "run.json").write_text(json.dumps({"state": state}))
    assert [cell.state for cell in plan(sweep(), overrides, build=False)] == ["finished", "partial", "new"]


SWEEP = """
import sys
from hydra.core.global_hydra import GlobalHydra
from hydra.initialize import initialize_config_dir
from hydra.types import RunMode
from vae_lab import hints
from vae_lab.cli import register_resolvers
from vae_lab.launch.plan import plan
import vae_lab.launch.pool, vae_lab.launch.grid, hydra_plugins.vae_lab.pool, hydra_plugins.vae_lab.grid
register_resolvers()
with initialize_config_dir(str(hints.CONF), version_base="1.3"):
    config = GlobalHydra.instance().config_loader().load_configuration("train", [], RunMode.MULTIRUN)
    plan(config, [["d=2", "likelihood=bernoulli"], ["d=3"]], build=False)
loaded = {"torch", "pytorch_lightning", "wandb", "numpy"} & set(sys.modules)
assert not loaded, loaded
"""


def test_planning_needs_no_torch(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SWEEP], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_hydra_composes_once_for_each_set_of_options(sweep, monkeypatch):
    """However many cells: what takes Hydra a tenth of one happens three times; and memory stays where it is."""
    config, asked, load = sweep(), [], ConfigLoaderImpl.load_sweep_config
    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", lambda self, *a: (asked.append(a[1]), load(self, *a))[1])
    likelihoods = ["bernoulli", "gaussian", "laplace"]
    cells = [[f"d={i + 1}", f"likelihood={name}", "seed=1"] for i in range(100) for name in likelihoods]
    count = sum(1 for _ in configs(config, cells[:99]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count += sum(1 for _ in configs(config, cells))
    assert count == 99 + 300 and len(asked) == 6
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB
    assert grown < 20 * 1024
