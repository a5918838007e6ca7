"""What Slurm and Ray are told of a sweep: no cluster and neither package is needed."""

import inspect
import signal
import sys
import types
from pathlib import Path

import pytest
import yaml
from omegaconf import DictConfig

from vae_lab.launch import job, ray, slurm
from vae_lab.launch.plan import Cell
from vae_lab.launch.ray import Ray
from vae_lab.launch.slurm import Slurm
from vae_lab.runs import record

CONF = Path(__file__).parents[1] / "conf" / "hydra" / "launcher"


@pytest.fixture
def cell(tmp_path):
    return Cell(["d=2", "seed=1"], str(tmp_path / "outputs" / "d-2-0123456789ab"), "0123456789ab")


@pytest.mark.parametrize("name, cls", [("slurm", Slurm), ("ray", Ray)])
def test_the_options_are_the_constructors(name, cls):
    options = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    assert options.pop("_target_") == f"hydra_plugins.vae_lab.{name}.{cls.__name__}Launcher"
    assert list(options) == list(inspect.signature(cls).parameters)
    assert vars(cls(**options)) == vars(cls())


def test_slurm_is_told_what_the_options_say():
    options = Slurm(
        partition="gpu",
        gpus_per_job=2,
        cpus_per_job=4,
        mem_gb=16,
        timeout_min=30,
        nodes=2,
        tasks_per_node=2,
        array_parallelism=8,
        signal_delay_s=60,
        setup=["module load cuda"],
        sbatch={"account": "mine"},
    )
    assert options.parameters() == {
        "name": "vae-lab",
        "slurm_partition": "gpu",
        "gpus_per_node": 2,
        "cpus_per_task": 4,
        "mem_gb": 16.0,
        "timeout_min": 30,
        "nodes": 2,
        "tasks_per_node": 2,
        "slurm_array_parallelism": 8,
        "slurm_signal_delay_s": 60,
        "slurm_setup": ["module load cuda"],
        "slurm_srun_args": ["--kill-on-bad-exit=1"],
        "slurm_additional_parameters": {"requeue": True, "account": "mine"},
    }
    # what is not said is the cluster's to choose
    assert not {"slurm_partition", "gpus_per_node", "mem_gb", "slurm_setup"} & Slurm().parameters().keys()


def test_submitit_knows_what_it_is_told(tmp_path, monkeypatch):
    submitit = pytest.importorskip("submitit", reason="needs vae-lab[slurm]")
    monkeypatch.setattr("submitit.slurm.slurm.SlurmExecutor.affinity", classmethod(lambda cls: 2))
    executor = submitit.AutoExecutor(tmp_path, "slurm")
    executor.update_parameters(**Slurm("gpu", 2, 4, 16, 30, sbatch={"account": "mine"}).parameters())
    text = executor._executor._make_submission_file_text("command", "id")
    for option in ("partition=gpu", "gpus-per-node=2", "cpus-per-task=4", "mem=16GB", "time=30", "account=mine"):
        assert f"#SBATCH --{option}\n" in text
    assert "#SBATCH --requeue\n" in text and "#SBATCH --signal=USR2@90\n" in text


def test_ray_is_told_what_the_options_say():
    assert Ray("auto", 0.25, 2.0, 5).options() == {"num_cpus": 2.0, "num_gpus": 0.25, "max_retries": 5}


@pytest.mark.parametrize(
    "wrong, said",
    [
        (lambda: Slurm(gpus_per_job=-1), "hydra.launcher.gpus_per_job must be a whole number >= 0, got -1"),
        (lambda: Slurm(timeout_min=0), "hydra.launcher.timeout_min must be a whole number >= 1, got 0"),
        (lambda: Slurm(tasks_per_node=0), "hydra.launcher.tasks_per_node must be a whole number >= 1, got 0"),
        (lambda: Slurm(mem_gb=0), "hydra.launcher.mem_gb must be a finite number > 0, got 0"),
        (lambda: Slurm(max_failures=0), "hydra.launcher.max_failures must be a whole number >= 1, got 0"),
        (lambda: Ray(gpus_per_job=1.5), "hydra.launcher.gpus_per_job must be a whole number >= 1, got 1.5"),
        (lambda: Ray(cpus_per_job=0), "hydra.launcher.cpus_per_job must be a finite number > 0, got 0"),
        (lambda: Ray(max_retries=-1), "hydra.launcher.max_retries must be a whole number >= 0, got -1"),
    ],
)
def test_wrong_options_are_refused(wrong, said):
    with pytest.raises(ValueError) as error:
        wrong()
    assert str(error.value) == said


def test_a_job_is_the_plain_command_that_waits_for_what_was_left(cell):
    made = Slurm(cpus_per_job=3, max_requeues=7).job(cell, ["--config-dir=mine"])
    assert made.command == job.command(["--config-dir=mine", "d=2", "seed=1", "wait=true"])
    assert (made.folder, made.threads, made.several, made.max_requeues) == (cell.folder, 3, False, 7)
    assert Path(made.note) == Path(cell.folder).parent / ".slurm" / "0123456789ab.status"
    assert Slurm(tasks_per_node=2).job(cell, []).several and Slurm(nodes=2).job(cell, []).several


def test_a_job_comes_back_so_often_and_no_more(cell, monkeypatch):
    pytest.importorskip("submitit", reason="needs vae-lab[slurm]")
    made = Slurm(max_requeues=2).job(cell, [])
    again = []
    for restarts in range(4):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
        again.append(made.checkpoint() is not None)
    assert again == [True, True, False, False]


def test_the_states_of_jobs_are_those_of_squeue(monkeypatch):
    monkeypatch.setattr(slurm, "ask", lambda *command: "12_0 RUNNING\n12_1 PENDING\n9 TIMEOUT\n")
    # what Slurm has forgotten is over
    assert slurm.look({0: "12_0", 1: "12_1", 2: "7"}) == {0: "RUNNING", 1: "PENDING", 2: "COMPLETED"}
    monkeypatch.setattr(slurm, "ask", lambda *command: None)
    assert slurm.look({0: "12_0"}) is None


def test_nothing_is_submitted_again_while_slurm_does_not_answer(cell, monkeypatch):
    kept = slurm.note(cell, "job")
    kept.parent.mkdir(parents=True)
    kept.write_text("12_0")
    answers = [None, None, None, None, None, "12_0 PENDING\n"]
    monkeypatch.setattr(slurm, "ask", lambda *command: answers.pop(0))
    monkeypatch.setitem(sys.modules, "submitit", types.SimpleNamespace(AutoExecutor=None))
    with pytest.raises(ValueError, match="squeue failed 3 times"):
        Slurm(poll_s=0.01).submit([cell], [0], [])
    assert Slurm(poll_s=0.01).submit([cell], [0], []) == {0: "12_0"} and not answers


def test_a_job_that_has_left_no_status_is_no_success(cell):
    assert slurm.outcome(cell, "12_0", None).state == "failed"
    record.begin(Path(cell.folder), cell.fingerprint, cell.overrides)  # and its process is gone: nobody has the lock
    assert slurm.outcome(cell, "12_0", None).state == "partial"
    assert slurm.outcome(cell, "12_0", "0").state == "failed"  # it is not recorded as finished
    record.end(Path(cell.folder), "finished", 1.0, value=-3.0)
    assert slurm.outcome(cell, "12_0", "0") == job.Outcome("finished", -3.0)
    assert (
        slurm.outcome(cell, "12_0", str(128 + signal.SIGUSR2)).error == "job 12_0: interrupted by SIGUSR2, not requeued"
    )


def test_absent_slurm_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="there is no sbatch"):
        Slurm().launch(DictConfig({}), [])


def test_absent_ray_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'vae-lab\[ray\]'"):
        Ray().launch(DictConfig({}), [])


def test_rays_job_is_the_plain_command_and_its_status_comes_back(tmp_path, monkeypatch):
    code = "import os, sys; print(os.environ['WANDB_MODE'], os.getcwd(), *sys.argv[1:]); sys.exit(3)"
    monkeypatch.setattr(job, "command", lambda overrides: [sys.executable, "-c", code, *overrides])
    folder = tmp_path / "outputs" / "run"
    assert ray.work(["d=2"], str(folder), str(tmp_path), 1, {"WANDB_MODE": "offline"}) == 3
    assert (folder / job.LOG).read_text().splitlines()[-1] == f"offline {tmp_path} d=2"
