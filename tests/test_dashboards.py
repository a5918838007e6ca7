"""A sweep in W&B, TensorBoard and the workspace: what each is told, read back from its own files."""

import gzip
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from test_train import QUICK, command, flatten, inspect, refused, runs_in, train, without_account

from vae_lab import hints
from vae_lab.cli import main, register_resolvers
from vae_lab.commands import loggers
from vae_lab.runs import identity, record, sweeps

pytestmark = pytest.mark.xdist_group("dashboards")  # one sweep for all of them

ROOT = Path(__file__).parents[1]
WANDB = str(Path(sys.executable).with_name("wandb"))
SWEEP = ["d=2,3", "likelihood.s2=0.1", "trainer.max_epochs=2", "callbacks=[checkpoint,pictures]"]
SWEEP += ["logger.log_artifacts=true"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    without_account(monkeypatch)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A folder with a sweep of two cells, trained without an account, of which one was evaluated; and what it said."""
    folder = tmp_path_factory.mktemp("swept")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        without_account(patch)
        # from a process that has a W&B run of its own, in which the jobs have no part
        done = command(str(ROOT / "scripts" / "train.py"), "-m", *SWEEP, WANDB_SERVICE="3-1-unix-/elsewhere")
        assert done.returncode == 0, done.stderr
        first = runs_in("outputs")[0]
        evaluated = command(
            str(ROOT / "scripts" / "evaluate.py"), f"run={first}", "evaluation.max_examples=20", "evaluation.K=20"
        )
        assert evaluated.returncode == 0 and "warning: W&B" not in evaluated.stderr, evaluated.stderr
    return folder, done.stdout


def files(run):
    """The files of a run's W&B run, the oldest first."""
    return [file for folder in record.wandb_folders(run) for file in folder.glob("*.wandb")]


def told(run, file):
    """What W&B's reader finds in a file: the run, its configuration, its summary, and its records."""
    summary, records = inspect(run, file)
    [known] = [r["run"] for r in records if r["type"] == "run"]
    return known, summary["config"] | flatten(summary["summary"]), records


# --- W&B


def test_the_runs_of_a_sweep_belong_together(swept):
    folder, said = swept
    runs = runs_in(folder / "outputs")
    assert len(runs) == 2 and not any((run / "wandb").exists() for run in runs)
    seen = [told(run, files(run)[0]) for run in runs]
    name = identity.sweep_name(SWEEP)
    for run, (known, values, _) in zip(runs, seen, strict=True):
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert known["run_group"] == name and known["job_type"] == "train" and known["tags"] == ["d"]
        assert known["run_id"] == record.read(run)["fingerprint"] and known["notes"] == name
        assert known["config"]["update"]["d"] == config["d"]  # from the first record on, which is what LEET filters by
        assert known["display_name"] == f"d={config['d']} likelihood.s2=0.1 trainer.max_epochs=2"
        # the columns are the keys that are typed
        for key, value in {"d": config["d"], "likelihood.s2": 0.1, "objective.V": 1, "encoder": "mlp"}.items():
            assert values[key] == value, key
        assert values["likelihood"] == "gaussian" and values["data"] == "digits" and values["seed"] == 0
        assert not any("_target_" in key or key.startswith("logger") for key in values)
    assert len({known["run_id"] for known, *_ in seen}) == 2
    assert said.count("wandb sync") == 1 and "wandb sync outputs/wandb/offline-run-*" in said


def test_summary_pictures_table_and_artifacts(swept):
    folder, _ = swept
    run = runs_in(folder / "outputs")[1]
    [file] = files(run)
    _, values, records = told(run, file)
    results = record.read(run)["results"]
    assert values["test/elbo"] == pytest.approx(results["test/elbo"])
    media = file.parent / "files" / "media"
    pictures = {path.name.split("_")[0] for path in (media / "images" / "pictures").glob("*.png")}
    assert {"reconstructions", "samples", "traversals"} <= pictures
    [path] = (media / "table").glob("kl_dims_*.json")
    table = json.loads(path.read_text())
    assert table["columns"] == ["dimension", "split", "KL"]
    rows = {(dimension, split): kl for dimension, split, kl in table["data"]}
    assert rows.keys() == {(j, split) for j in range(3) for split in ("val", "test")}
    assert rows[2, "test"] == pytest.approx(results["test/kl_dim/2"])
    kept = {r["artifact"]["type"]: r["artifact"] for r in records if r["type"] == "artifact"}
    inside = {kind: {e["path"] for e in kept[kind]["manifest"]["contents"]} for kind in ("model", "report")}
    assert inside["model"] == {"checkpoints/best.ckpt", "config.yaml"}
    assert {"history.jsonl", "pictures/samples.png"} <= inside["report"]


def test_a_server_that_fails_at_the_end_does_not_fail_the_run(monkeypatch, capsys):
    def broken(rows):
        raise ConnectionError("the server is\naway")

    monkeypatch.setattr(loggers, "table", broken)
    [run] = train(*QUICK)
    assert record.read(run)["state"] == "finished"
    assert "warning: W&B was not told everything: the server is\n" in capsys.readouterr().err
    assert told(run, files(run)[0])[1]["test/elbo"] == pytest.approx(record.read(run)["results"]["test/elbo"])


def test_artifacts_only_where_they_are_asked_for(capsys, unchecked):
    [run] = train(*QUICK, "logger.tags=[mine]", "logger.group=ours")
    known, _, records = told(run, files(run)[0])
    assert "notes" not in known  # it is of no sweep
    assert known["tags"] == ["mine"] and known["run_group"] == "ours"
    assert {r["artifact"]["type"] for r in records if r["type"] == "artifact"} <= {"run_table"}
    assert f"wandb sync outputs/wandb/offline-run-*-{known['run_id']}*" in capsys.readouterr().out
    said = refused(capsys, "train", *QUICK, "seed=5", "logger.log_artifacts=maybe")
    assert "logger.log_artifacts must be true or false, got 'maybe'" in said


def test_evaluation_joins_the_run(swept):
    folder, _ = swept
    run = runs_in(folder / "outputs")[0]
    first, second = files(run)
    assert first.name == second.name
    (known, before, _), (again, after, records) = told(run, first), told(run, second)
    for key in ("run_id", "run_group", "job_type", "tags", "display_name", "project", "notes"):
        assert known[key] == again[key]
    assert not [r for r in records if r["type"] == "history"]
    scores = json.loads((run / "evaluation.json").read_text())
    [log_p] = [entry["log_p"] for entry in scores.values() if "log_p" in entry]
    assert after["evaluation/test/importance/log_p"] == pytest.approx(log_p)
    # all that the first one says, as the last summary to be uploaded is the one that stays
    plain = {key: value for key, value in before.items() if isinstance(value, float) and not key.startswith("_")}
    assert {"test/elbo", "likelihood.s2", "val/elbo.max", "train/rec.max"} <= plain.keys()
    for key, value in plain.items():
        assert after[key] == pytest.approx(value), key


class StandIn(BaseHTTPRequestHandler):
    """What `wandb sync` needs of W&B's server: it remembers of each run what it is told, and answers with that."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, content):
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self):
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(content) if self.headers.get("Content-Encoding") == "gzip" else content

    def do_GET(self):
        self.answer({})

    def do_PUT(self):
        self.server.uploaded.append(self.path)
        self.body()
        self.answer({})

    def do_POST(self):
        content = json.loads(self.body() or "{}")  # its telemetry is empty
        if self.path == "/graphql":
            name = re.search(r"(?:query|mutation)\s+(\w+)", content["query"])[1]
            return self.answer(self.graphql(name, content.get("variables") or {}))
        if not self.path.endswith("/file_stream"):
            return self.answer({})
        run = self.server.runs[self.path.split("/")[4]]
        for name, part in (content.get("files") or {}).items():
            lines = run["files"].setdefault(name, [])
            lines[part["offset"] :] = part["content"]
        self.answer({"exitcode": None, "limits": {}})

    def graphql(self, name, given):
        runs = self.server.runs
        project = {"id": "P", "name": "vae-lab", "internalId": "1", "entity": {"id": "E", "name": "me"}}
        if name == "RunResumeStatus":
            return {"data": {"model": project | {"bucket": self.bucket(given["name"])}}}
        if name == "UpsertBucket":
            run = runs.setdefault(given["name"], {"files": {}, "config": {}})
            run |= {k: given[k] for k in ("displayName", "groupName", "jobType", "tags") if given.get(k)}
            run["config"] = json.loads(given["config"]) if given.get("config") else run["config"]
            bucket = {"id": given["name"], "name": given["name"], "project": project, "historyLineCount": 0}
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        if name == "CreateRunFiles":
            where = f"http://127.0.0.1:{self.server.server_port}/"
            urls = [{"name": file, "uploadUrl": where + file} for file in given["files"]]
            return {"data": {"createRunFiles": {"runID": "R", "uploadHeaders": [], "files": urls}}}
        if name == "CreateArtifact":
            return {"errors": [{"message": "none here"}], "data": None}
        return {"data": {}}

    def bucket(self, name):
        if name not in self.server.runs:
            return None
        run = self.server.runs[name]
        lines = {kind: run["files"].get(f"wandb-{kind}.jsonl", []) for kind in ("history", "events")}
        counts = {f"{kind}LineCount": len(found) for kind, found in lines.items()}
        tails = {f"{kind}Tail": json.dumps(found[-1:]) for kind, found in lines.items()}
        summary = run["files"].get("wandb-summary.json", ["{}"])[-1]
        known = {"id": name, "name": name, "displayName": run["displayName"], "tags": run.get("tags")}
        return (
            known
            | counts
            | tails
            | {
                "logLineCount": 0,
                "summaryMetrics": summary,
                "config": json.dumps(run["config"]),
                "wandbConfig": '{"t": 1}',
            }
        )


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 100  # each that finds the queue full waits for a second


def test_one_command_uploads_all(swept, monkeypatch, tmp_path):
    """The printed command, run by W&B's own program; only the server is a stand-in."""
    folder, said = swept
    server = Server(("127.0.0.1", 0), StandIn)
    server.runs, server.uploaded = {}, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    [line] = re.findall(r"wandb sync .*", said)
    env = os.environ | {
        "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}",
        "WANDB_API_KEY": "0" * 40,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    try:
        done = subprocess.run(line, shell=True, cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    finally:
        server.shutdown()
        server.server_close()
        for mark in (folder / "outputs" / "wandb").glob("*/*.synced"):
            mark.unlink()
    assert done.returncode == 0, done.stderr
    runs = runs_in(folder / "outputs")
    assert server.runs.keys() == {record.read(run)["fingerprint"] for run in runs}
    for run in runs:
        found = server.runs[record.read(run)["fingerprint"]]
        assert found["groupName"] == identity.sweep_name(SWEEP)
        assert found["jobType"] == "train" and found["tags"] == ["d"]
        d = yaml.safe_load((run / "config.yaml").read_text())["d"]
        assert found["config"]["d"] == {"value": d} and found["config"]["likelihood.s2"] == {"value": 0.1}
        history = [json.loads(row) for row in found["files"]["wandb-history.jsonl"]]
        elbos = [row["val/elbo"] for row in history if "val/elbo" in row]
        ours = [row["val/elbo"] for row in loggers.runs.rows(run / "history.jsonl") if "val/elbo" in row]
        assert elbos == pytest.approx(ours)
        [summary] = [json.loads(text) for text in found["files"]["wandb-summary.json"][-1:]]
        assert summary["test/elbo"] == pytest.approx(record.read(run)["results"]["test/elbo"])
        assert summary["val/elbo"]["max"] == pytest.approx(record.read(run)["value"])
        assert {"kl_dims", "pictures/samples", "pictures/traversals"} <= summary.keys()
        evaluated = (run / "evaluation.json").exists()
        assert evaluated == any(key.startswith("evaluation/") for key in summary)
    assert any("kl_dims" in path for path in server.uploaded) and any("samples" in path for path in server.uploaded)


def test_rm_removes_what_wandb_keeps(capsys):
    for seed in (0, 1):
        train("trainer.max_epochs=1", "callbacks=[checkpoint]", f"seed={seed}")
    main(["runs", "rm", "seed=1", "yes=true"])
    [left] = runs_in("outputs")
    assert [p.name for p in Path("outputs/wandb").glob("offline-run-*")] == [record.wandb_folders(left)[0].name]


# --- TensorBoard


def test_tensorboards_hyper_parameters_have_their_results():
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    [run] = train(*QUICK, "logger=tensorboard", "encoder=mlp", "encoder.hidden=[20]", "likelihood.s2=0.1")
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    content = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    given = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert given["likelihood.s2"].number_value == 0.1 and given["encoder"].string_value == "mlp"
    assert given["d"].number_value == 2 and given["encoder.hidden"].string_value == "[20]"
    assert given.keys() == {
        "d",
        "objective.V",
        "likelihood.s2",
        "seed",
        "encoder",
        "encoder.hidden",
        "trainer.max_epochs",
    }
    content = events.SummaryMetadata(metadata.EXPERIMENT_TAG).plugin_data.content
    experiment = plugin_data_pb2.HParamsPluginData.FromString(content).experiment
    metrics = {info.name.tag for info in experiment.metric_infos}
    assert metrics == {"test/elbo", "test/kl", "test/rec", "test/active_units", "val/elbo"}
    results = record.read(run)["results"]
    for metric in metrics:  # each is a curve, whose last value the tab shows
        assert events.Scalars(metric)[-1].value == pytest.approx(results[metric], rel=1e-5), metric
    assert len(events.Scalars("test/elbo")) == 1


# --- the workspace


@pytest.fixture
def written(swept, capsys):
    """What `wandb_workspace dry_run=true` writes of the sweep."""
    pytest.importorskip("wandb_workspaces")
    main(
        [
            "wandb_workspace",
            "dry_run=true",
            f"outputs={swept[0] / 'outputs'}",
            "file=views.json",
            "entity=us",
            "group=g",
        ]
    )
    assert capsys.readouterr().out == "written: views.json\n"
    return json.loads(Path("views.json").read_text())


def test_the_workspace_is_one_to_the_library(written):
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces.workspaces import Workspace, internal

    found = Workspace._from_model(internal.View.model_validate(written["workspace"]))
    assert (found.entity, found.project, found.name) == ("us", "vae-lab", "vae_lab")
    assert "'g'" in str(found.runset_settings.filters).replace('"', "'")
    panels = {section.name: section.panels for section in found.sections}
    assert list(panels) == ["Results", "Curves by d", "Curves by objective.V", "Curves by likelihood.s2", "Pictures"]
    elbo, rates, parallel = panels["Results"]
    assert (elbo.x, elbo.y, elbo.z) == (
        wr.Config("likelihood.s2"),
        wr.SummaryMetric("test/elbo"),
        wr.Config("objective.V"),
    )
    assert elbo.log_x and isinstance(rates, wr.ScatterPlot) and isinstance(parallel, wr.ParallelCoordinatesPlot)
    assert [c.metric.name for c in parallel.columns][:4] == ["d", "objective.V", "likelihood.s2", "test/elbo"]
    for axis in ("d", "objective.V", "likelihood.s2"):
        curves = panels[f"Curves by {axis}"]
        assert [curve.y[0].name for curve in curves] == ["val/elbo", "val/kl", "val/rec"]
        assert all(c.groupby == wr.Config(axis) and c.groupby_aggfunc == "mean" for c in curves)
    [media] = panels["Pictures"]
    assert isinstance(media, wr.MediaBrowser) and "pictures/traversals" in media.media_keys


def test_it_shows_what_the_runs_log(written, swept):
    """Each key of a chart is one that a run has, and a key with a dot is flat, as W&B stores it."""
    run = runs_in(swept[0] / "outputs")[0]
    _, values, _ = told(run, files(run)[0])
    text = json.dumps(written)
    for key in re.findall(r'"config:([^"]+)\.value"', text) + re.findall(r'"groupBy": "([^"]+)\.value"', text):
        assert key in values, key
    for key in re.findall(r'"summary:([^"]+)"', text):
        assert key in values, key
    assert '"config:likelihood.s2.value"' in text and "value.s2" not in text
    for metrics in re.findall(r'"metrics": \["([^"]+)"\]', text):
        assert f"{metrics}" in {k for row in loggers.runs.rows(run / "history.jsonl") for k in row}


def test_the_report_tells_the_findings(written, swept):
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces.reports.v2 import internal

    found = wr.Report._from_model(internal.ReportViewspec.model_validate(written["report"]))
    assert found.title == "vae_lab" and found.project == "vae-lab"
    [words] = [block.text for block in found.blocks if isinstance(block, wr.MarkdownBlock)]
    best = max(
        (record.read(run) for run in runs_in(swept[0] / "outputs")), key=lambda known: known["results"]["test/elbo"]
    )
    assert "2 runs, of which 2 are finished" in words and f"{best['results']['test/elbo']:.3f}" in words
    assert f"d={best['overrides'][0].removeprefix('d=')} " in words and "| d | runs |" in words
    grids = [block for block in found.blocks if isinstance(block, wr.PanelGrid)]
    assert len(grids) == 5 and all("'g'" in str(grid.runsets[0].filters) for grid in grids)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "wandb_workspace needs an account: `wandb login`, or WANDB_API_KEY; dry_run=true needs none"),
        (["project="], "project must be a name, got ''"),
        (["axes=d", "dry_run=true"], "axes must be a list of keys, as [d,likelihood.s2], got 'd'"),
        (["dry_run=3"], "dry_run must be true or false, got 3"),
    ],
)
def test_the_workspace_refuses(words, message, capsys):
    assert message in refused(capsys, "wandb_workspace", *words)


def test_without_the_package_it_says_what_to_install():
    code = (
        "import sys; sys.modules['wandb_workspaces'] = None\n"
        "from vae_lab.cli import main; main(['wandb_workspace', 'dry_run=true'])"
    )
    done = command("-c", code)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "pip install 'vae-lab[workspace]'" in done.stderr


# --- what a sweep is called


def test_a_sweeps_name():
    name = identity.sweep_name(["d=2,8", "seed=0,1", "logger=csv", "paths.outputs=x"])
    assert name.startswith("d-2-8_seed-0-1-") and name == identity.sweep_name(["d=2,8", "seed=0,1"])
    assert name == identity.sweep_name(["seed=0,1", "d=2,8"])
    assert name != identity.sweep_name(["d=2,8", "seed=0,2"])
    assert len(identity.sweep_name([f"encoder.hidden=[{','.join(['100'] * 200)}]"])) <= 128  # W&B's limit


def test_a_run_is_the_same_in_a_sweep_and_out_of_it(monkeypatch):
    monkeypatch.setenv(sweeps.NAME, "outer")
    monkeypatch.delenv(sweeps.AXES, raising=False)
    register_resolvers()

    def composed():
        with initialize_config_dir(str(hints.CONF), version_base="1.3"):
            return compose("train", ["d=3", "logger.name=x"])

    alone = composed()
    assert (alone.logger.group, list(alone.logger.tags)) == ("outer", [])
    with sweeps.named("inner", ["d", "likelihood.s2"]):
        within = composed()
        assert (within.logger.group, list(within.logger.tags)) == ("inner", ["d", "likelihood.s2"])
        assert identity.fingerprint(within) == identity.fingerprint(alone)
    assert os.environ[sweeps.NAME] == "outer" and sweeps.AXES not in os.environ
