"""What commands import, and when: what answers at once imports nothing heavy."""

import subprocess
import sys

import pytest

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
main(["train", "-m", "d=2,3"])
main(["train", "d=2"])
loaded = set(sys.argv[1].split()) & set(sys.modules)
assert not loaded, loaded
assert forkserver._forkserver._forkserver_pid is None
"""


def test_a_sweep_of_finished_cells_imports_and_starts_nothing(tmp_path):
    assert "2 runs: 0 finished, 2 skipped" in python(FINISHED, " ".join(HEAVY), folder=tmp_path)


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
