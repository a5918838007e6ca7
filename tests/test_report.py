"""Comparing runs: what is read, how it is compared, what the linear oracle says, and the tables."""

import base64
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from report_fixture import N_TEST, composed, grid, make, png
from scipy import stats

import vae_lab.report
from vae_lab import runs
from vae_lab.cli import main
from vae_lab.oracles import PPCA
from vae_lab.report import collapse, curves, oracle, protocols, statistics, tables, thumbnails
from vae_lab.report.oracle import Oracles
from vae_lab.report.page import render
from vae_lab.report.payload import axis, logarithmic, payload, swept
from vae_lab.report.rows import collect
from vae_lab.runs import record
from vae_lab.runs.folder import load_data

ROOT = Path(__file__).parents[1]
HOSTILE = "<script>alert('|&_%$#{}~^\\')</script>"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Sixteen made-up runs: d, V and s2, two seeds."""
    outputs = tmp_path_factory.mktemp("report") / "outputs"
    grid(outputs, pictures={"reconstructions": png(), "samples": png(seed=1)})
    return outputs


@pytest.fixture
def outputs(tmp_path):
    return tmp_path / "outputs"


def report(*words):
    """The exit status of `vae-lab report ...`, or what it says is wrong."""
    try:
        main(["report", *map(str, words)])
    except SystemExit as exit:
        return exit.code
    return 0


def evaluated(folder, K=1000, n=100, log_p=-30.0, preprocessing="Raw", **more):
    """What `evaluate` leaves in a run's folder."""
    known = {"estimator": "importance", "data": "Digits", "preprocessing": preprocessing, "split": "test", "n": n}
    known |= {"samples": f"K={K}", "checkpoint": "best", "seed": 0} | more
    path = folder / runs.EVALUATION
    kept = json.loads(path.read_text()) if path.exists() else {}
    entry = {"protocol": known, "log_p": log_p, "log_p_se": 0.5, "ess": 20.0}
    runs.write(path, kept | {f"importance split=test K={K} n={n}": entry})


# --- means and differences


def test_a_mean_is_numpys():
    values = np.random.default_rng(0).normal(size=7).tolist()
    found = statistics.mean(values)
    assert found.mean == pytest.approx(np.mean(values), rel=1e-12)
    assert found.error == pytest.approx(stats.sem(values), rel=1e-12) and found.n == 7
    assert statistics.mean([3.0]) == (3.0, None, 1)


def test_a_paired_interval_is_scipys():
    rng = np.random.default_rng(1)
    a = {seed: rng.normal() for seed in range(9)}
    b = {seed: a[seed] + rng.normal(0.3, 0.1) for seed in range(2, 9)} | {77: 1.0}
    common = [seed for seed in a if seed in b]
    known = stats.ttest_rel([b[s] for s in common], [a[s] for s in common])
    interval = known.confidence_interval(0.95)
    found = statistics.paired(a, b)
    assert found.difference == pytest.approx(np.mean([b[s] - a[s] for s in common]), rel=1e-12)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9) and found.n == 7
    assert statistics.paired({0: 1.0}, {0: 3.0, 1: 9.0}) == (2.0, None, None, 1)
    with pytest.raises(ValueError, match="share none"):
        statistics.paired({0: 1.0}, {1: 1.0})


def test_settings_are_compared_over_common_seeds(sweep):
    rows = collect(sweep).rows
    df = vae_lab.report.frame(sweep)
    wide = df.pivot_table("test/elbo", ["d", "likelihood.s2", "seed"], "objective.V")
    known = stats.ttest_rel(wide[10], wide[1]).confidence_interval(0.95)
    found = statistics.compare(rows, "test/elbo", "objective.V", 1, 10)
    assert found.n == 8 and (found.low, found.high) == pytest.approx((known.low, known.high), rel=1e-9)
    means = statistics.means(rows, "test/elbo", ["d", "likelihood.s2"])
    groups = df.groupby(["d", "likelihood.s2"])["test/elbo"]
    for (d, s2), values in groups:
        assert means[f"{d:g}", f"{s2:g}"] == pytest.approx((values.mean(), values.sem(), len(values)), rel=1e-12)
    for words, message in [
        (("test/elbow", "d", 2, 8), "test/elbow: no run has this metric; did you mean 'test/elbo'"),
        (("test/elbo", "objektive.V", 1, 10), "no run has this key; did you mean 'objective.V'"),
        (("test/elbo", "d", 2, 9), "no two runs with 2 and 9 are alike"),
    ]:
        with pytest.raises(ValueError, match=message):
            statistics.compare(rows, *words)


def test_options_are_compared_with_their_own_keys(outputs):
    for seed in (0, 1):
        for i, words in enumerate((["optimizer=adam"], ["optimizer=sgd"], ["likelihood=laplace"])):
            make(outputs, composed(f"seed={seed}", *words), [f"seed={seed}", *words], elbo=-40.0 - i - seed, seed=9)
    rows = collect(outputs).rows
    assert statistics.compare(rows, "test/elbo", "optimizer", "adam", "sgd") == (
        pytest.approx(-1),
        *[pytest.approx(-1)] * 2,
        2,
    )
    assert statistics.compare(rows, "test/elbo", "likelihood", "gaussian", "laplace").n == 2
    make(outputs, composed("likelihood.s2=0.5"), ["likelihood.s2=0.5"])
    with pytest.raises(ValueError, match=r"differ in nothing but likelihood\.\*"):
        statistics.compare(collect(outputs).rows, "test/elbo", "likelihood", "gaussian", "laplace")


# --- what may be compared


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["preprocessing=dequantised"], "preprocessing differs (pixels / 16; (pixels + u) / 17)"),
        (["preprocessing=binarised_dynamic"], "preprocessing differs (pixels / 16; binarised afresh)"),
        (
            ["likelihood=categorical", "likelihood.levels=17"],
            "measure differs (p(x|z) a density; p(x|z) a probability)",
        ),
        (["likelihood=bernoulli"], "measure differs (p(x|z) a density; p(x|z) a Bernoulli of grey values)"),
        (["likelihood=laplace"], None),
        (["objective.V=10"], None),  # an ELBO's mean does not depend on V
        (["objective=iwae"], None),
        (["encoder=linear", "d=5", "seed=3"], None),
    ],
)
def test_the_guard(outputs, overrides, reason):
    make(outputs, composed(), ["d=2"])
    make(outputs, composed(*overrides), overrides)
    one, other = (row.protocols["test/elbo"] for row in collect(outputs).rows)
    assert protocols.why_not([one, other]) in (reason, None if reason is None else _turned(reason))
    assert one.n == N_TEST and str(one).startswith("test split, n = 360, digits, ")
    if reason is not None:
        with pytest.raises(ValueError, match=r"cannot be compared: "):
            statistics.means(collect(outputs).rows, "test/elbo", ["d"])
        text = tables.markdown(tables.table(collect(outputs)))
        assert "not ranked together" in text and "| protocol |" in text


def _turned(reason):
    what, first, second = re.fullmatch(r"(.*? \()(.*); (.*)\)", reason).groups()
    return f"{what}{second}; {first})"


def test_a_loss_is_its_objectives(outputs):
    make(outputs, composed(), ["d=2"])
    make(outputs, composed("objective.beta=4"), ["objective.beta=4"])
    one, other = (row.protocols for row in collect(outputs).rows)
    assert protocols.why_not([one["test/elbo"], other["test/elbo"]]) is None
    assert "beta=4" in str(protocols.why_not([one["test/loss"], other["test/loss"]]))


def test_what_evaluate_found_has_its_own_protocol(outputs):
    a = make(outputs, composed(), ["d=2"])
    b = make(outputs, composed("seed=1"), ["seed=1"])
    evaluated(a, K=1000, log_p=-30.0)
    evaluated(a, K=5, log_p=-35.0)
    evaluated(b, K=1000, log_p=-31.0)
    metric = "evaluation/test/importance/log_p"
    found = collect(outputs)
    assert [row.results[metric] for row in found.rows] == [-30.0, -31.0]  # of two, that which the other has too
    assert [row.errors[metric] for row in found.rows] == [0.5, 0.5]
    assert protocols.why_not(row.protocols[metric] for row in found.rows) is None
    (b / runs.EVALUATION).unlink()
    evaluated(b, K=5)
    evaluated(b, K=5, n=50)
    rows = collect(outputs).rows
    reason = protocols.why_not(row.protocols[metric] for row in rows)
    assert reason is None or "n differs" in reason or "estimator differs" in reason
    (a / runs.EVALUATION).unlink()
    evaluated(a, K=1000)
    reason = protocols.why_not(row.protocols[metric] for row in collect(outputs).rows)
    assert "estimator differs (importance K=1000; importance K=5)" in str(reason)


# --- what the linear oracle says


@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_active_units_are_predicted_from_the_eigenvalues(outputs, beta):
    config = composed("d=8", "likelihood.s2=0.2", f"objective.beta={beta}")
    folder = make(outputs, config, ["d=8"], d=8)
    [row] = collect(outputs).rows
    from sklearn.datasets import load_digits

    source, *_ = load_data(folder)
    x = source.load().train.x.double().flatten(1).numpy() / 16
    assert len(x) == 1257 and load_digits().images.max() == 16
    eigenvalues = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]
    # A_j = 1 - s2 / lambda_j > 0.01; with beta, the water stands at beta s2
    known = int((1 - beta * 0.2 / eigenvalues[:8] > 0.01).sum())
    assert 0 < known < 8
    assert Oracles().active(row.run) == known
    its = collapse.units(row, Oracles())
    assert its.predicted == known and its.active == 8 and len(its.kl) == 8
    assert its.verdict == (f"all 8 units are active; the linear oracle predicts {8 - known} inactive", "good")


@pytest.mark.parametrize(
    "overrides",
    [
        ["likelihood=gaussian_optimal"],
        ["likelihood=bernoulli"],
        ["prior=mixture"],
        ["objective=note_eq20"],
        ["objective.free_bits=0.1"],
    ],
)
def test_the_oracle_is_silent_where_it_knows_nothing(outputs, overrides):
    make(outputs, composed(*overrides), overrides)
    [row] = collect(outputs).rows
    oracles = Oracles()
    assert oracles.active(row.run) is None and oracle.refusal(row.run).startswith("the linear oracle needs")
    assert payload(collect(outputs))["oracles"][0]["note"] == oracle.refusal(row.run)


def test_water_filling():
    x = torch.randn(400, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([3, 2, 1, 0.5, 0.2, 0.1])
    ppca = PPCA.of(x)
    found = oracle.curve(ppca, 1e-3)
    eigenvalues = np.linalg.eigvalsh(np.cov(x.double().numpy().T, bias=True))
    for s2, rate, distortion, rec, active in zip(*found, strict=True):
        assert distortion == pytest.approx(np.minimum(eigenvalues, s2).sum(), rel=1e-6)
        assert rate == pytest.approx(0.5 * np.log(np.maximum(eigenvalues / s2, 1)).sum(), rel=1e-6, abs=1e-9)
        assert active == (eigenvalues > s2 * (1 + 1e-9)).sum()
        # -(rec + rate) is log p of the best linear model
        if active:
            assert -(rec + rate) == pytest.approx(ppca.log_p(6, s2), rel=1e-9)
    assert found.rate[0] == 0 and found.s2[-1] == pytest.approx(1e-3)


def test_distortion_of_a_run(outputs):
    make(outputs, composed("likelihood.s2=0.05"), ["likelihood.s2=0.05"])
    [row] = collect(outputs).rows
    # (8)  rec = -distortion / (2 s2) - D/2 log(2 pi s2)
    rec = -oracle.distortion(row) / (2 * 0.05) - 32 * math.log(2 * math.pi * 0.05)
    assert rec == pytest.approx(row.results["test/rec"], rel=1e-12)


@pytest.mark.parametrize(
    ("d", "active", "predicted", "words", "level"),
    [
        (16, 4, 5, ["12 of 16 units inactive: s2 is too large for these data; the linear oracle predicts 11"], "warn"),
        (16, 0, 0, ["16 of 16 units inactive: s2 is too large"], "bad"),
        (16, 4, 16, ["12 of 16 units inactive", "s2 alone does not explain it", "predicts 0"], "bad"),
        (16, 15, 16, ["1 of 16 units inactive: s2 alone does not explain it"], "warn"),
        (16, 4, None, ["12 of 16 units inactive"], "warn"),
        (2, 2, 2, ["all 2 units are active; the linear oracle predicts 0 inactive"], "good"),
        (1, 1, None, ["the only unit is active"], "good"),
    ],
)
def test_verdicts(d, active, predicted, words, level):
    found = collapse.verdict(d, active, predicted)
    assert all(word in found.text for word in words) and found.level == level


def test_data_that_are_not_there_are_a_note(outputs, tmp_path):
    np.save(tmp_path / "data.npy", np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32))
    config = composed("data=arrays", f"data.root={tmp_path / 'data.npy'}")
    make(outputs, config, ["data=arrays"])
    make(outputs, composed("data=mnist", f"data.cache={tmp_path}"), ["data=mnist"])
    (tmp_path / "data.npy").unlink()
    arrays, mnist = payload(collect(outputs))["oracles"]
    assert "data.npy" in arrays["note"] and arrays["rate"] == []
    assert "is not there, and a report downloads nothing" in mnist["note"]


def test_the_aggregate_posterior(outputs):
    folder = make(outputs, composed(), ["d=2"])
    assert payload(collect(outputs))["runs"][0]["aggregate"] is None
    known = {"estimator": "information", "data": "Digits", "preprocessing": "Raw", "split": "test", "n": 100}
    known |= {"samples": "V=100", "checkpoint": "best", "seed": 0}
    values = {"marginal_kl": 1.44, "mutual_information": 3.9, "rate": 5.34, "log_n": 4.6}
    runs.write(folder / runs.EVALUATION, {"information": {"protocol": known} | values})
    said = payload(collect(outputs))["runs"][0]["aggregate"]["text"]
    assert "KL(q(z) ‖ p(z)) = 1.44 nats of a rate of 5.34; I(x; z) = 3.90" in said


# --- curves and pictures


def test_thinning_keeps_every_spike():
    rng = np.random.default_rng(0)
    columns = [rng.normal(size=5000).cumsum().tolist() for _ in range(3)]
    columns[0][2345], columns[1][777], columns[2][4001] = 1e6, -1e6, None
    kept = curves.thinned(columns, 150)
    assert len(kept) <= 150 and kept[0] == 0 and kept[-1] == 4999 and {2345, 777} <= set(kept)
    for column in columns:
        some = [column[i] for i in kept if column[i] is not None]
        there = [value for value in column if value is not None]
        assert (min(some), max(some)) == (min(there), max(there))
    assert curves.thinned([[1.0, 2.0, 3.0]], 150) == [0, 1, 2]
    assert curves.thinned([[None] * 400], 20) == [0, 399]


def test_curves_know_epochs_examples_and_seconds(outputs):
    folder = make(outputs, composed(), ["d=2"], epochs=4)
    found = curves.curves(folder)
    assert found.epoch == [1, 2, 3, 4] and found.examples == [1257, 2514, 3771, 5028]
    assert found.seconds == pytest.approx([0.1257, 0.2514, 0.3771, 0.5028])  # at 10,000 images a second
    logged = {row["step"]: row["val/elbo"] for row in runs.files.rows(folder / runs.HISTORY) if "val/elbo" in row}
    assert found.values["val/elbo"] == list(logged.values()) and set(found.values) == set(curves.METRICS)
    # validation in mid-epoch, and a run that was killed before an epoch was over
    rows = [{"step": 5, "val/elbo": -3.0}, {"step": 10, "val/elbo": -2.0}, {"step": 10, "train/elbo": -1.0}]
    assert curves.full(rows).epoch == [0.5, 1.0] and curves.full(rows).seconds is None
    assert curves.full(rows[:1]) == ([1.0], None, None, {"val/elbo": [-3.0]})
    assert curves.full([{"step": 5, "train/elbo_step": -3.0}]) is None


def test_pictures_become_thumbnails(sweep):
    folders = sorted(path for path in sweep.iterdir() if path.is_dir())
    found, wrong = thumbnails.thumbnails(folders, 10**7)
    assert len(found) == 16 and not wrong and set(found[folders[0]]) == {"reconstructions", "samples"}
    content = base64.b64decode(found[folders[0]]["samples"].removeprefix("data:image/webp;base64,"))
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "WEBP" and image.width == thumbnails.WIDTHS[0]
        # what is drawn is what was there, but for the loss of compression
        with Image.open(folders[0] / "pictures" / "samples.png") as whole:
            small = np.asarray(whole.convert("L").resize(image.size, Image.Resampling.BOX), float)
        assert np.corrcoef(small.ravel(), np.asarray(image.convert("L"), float).ravel())[0, 1] > 0.9
    size = sum(len(uri) for uris in found.values() for uri in uris.values())
    some, _ = thumbnails.thumbnails(folders, size // 10)
    assert 0 < sum(len(uri) for uris in some.values() for uri in uris.values()) <= size // 10
    assert folders[0] in some and folders[-1] not in some  # the first matter most


# --- the payload


def test_the_payload_is_plain_json(sweep):
    found = payload(collect(sweep))
    again = json.loads(json.dumps(found, allow_nan=False))
    assert again == found
    assert [a["key"] for a in found["axes"]] == ["d", "seed", "likelihood.s2", "objective.V"]
    assert [(a["number"], a["log"], a["seed"]) for a in found["axes"]][:2] == [(True, True, False), (True, False, True)]
    assert found["swept"] == "8 d × s2 × V cells, 2 seeds each"
    assert found["size"] == {"finished": 16, "failed": 0, "partial": 0, "running": 0, "seconds": 200.0}
    assert found["t975"][0] == pytest.approx(stats.t.ppf(0.975, 1), abs=1e-6) and len(found["t975"]) == 60
    axes = {"d": 2, "seed": 0, "likelihood.s2": 0.02, "objective.V": 1}
    [one] = [one for one in found["runs"] if one["axes"] == axes]
    assert one["command"].startswith("vae-lab train d=2") and one["name"].startswith("d=2 objective.V=1")
    assert (
        found["protocols"][one["protocol"]["test/elbo"]]["text"]
        == "test split, n = 360, digits, pixels / 16, p(x|z) a density"
    )
    assert one["curves"]["epoch"] == [1, 2, 3] and one["pictures"]["samples"].startswith("data:image/webp;base64,")
    assert one["distortion"] > 0 and one["errors"]["test/elbo"] == 0.9 and "paths.run" not in one["config"]
    assert found["defaults"] == {"x": "d", "y": "test/elbo", "color": "likelihood.s2"}
    [reference] = found["oracles"]
    assert len(reference["runs"]) == 16 and len(reference["rate"]) == oracle.POINTS and reference["note"] is None
    headlines = [m["key"] for m in found["metrics"] if m["headline"]]
    assert headlines == ["test/elbo", "test/kl", "test/rec", "test/active_units"]


@pytest.mark.parametrize(
    ("values", "answer"),
    [([2, 8, 32], True), ([1, 2, 3], False), ([0.01, 0.1], True), ([0, 1, 10], False), ([1, 2], False), ([5], False)],
)
def test_logarithmic_axes(values, answer):
    assert logarithmic(values) is answer


def test_swept_is_said_in_words(outputs):
    make(outputs, composed(), ["d=2"])
    rows = collect(outputs).rows
    assert swept([], []) == "no runs" and swept(rows, []) == "1 cell, 1 seed"
    make(outputs, composed("seed=1"), ["seed=1"])
    make(outputs, composed("d=4"), ["d=4"])
    found = collect(outputs)
    assert swept(found.rows, [axis(found.rows, key) for key in found.axes()]) == "2 d cells, 1 to 2 seeds each"


# --- whatever lies there


def test_nothing_stops_it(outputs, tmp_path):
    good = make(outputs, composed(), ["d=2"], pictures={"samples": png()})
    failed = make(outputs, composed("d=3"), ["d=3"], state="failed", d=3)
    (failed / "job.log").write_text("one\ntwo\nTraceback: it broke\n")
    make(outputs, composed("d=4"), ["d=4"], state="running", d=4)  # its process is dead

    def spoilt(name, file, content):
        folder = shutil.copytree(good, outputs / name)
        (folder / file).write_bytes(content)

    spoilt("torn-record", "run.json", b'{"state": "fini')
    spoilt("foreign-record", "run.json", b'{"state": ["x"], "results": []}')
    spoilt("list-record", "run.json", b"[1, 2]")
    spoilt("torn-config", "config.yaml", b"d: [1, 2\nx: {")
    spoilt("binary-config", "config.yaml", bytes(range(256)))
    (shutil.copytree(good, outputs / "no-config") / "config.yaml").unlink()
    for name in ("torn-history", "torn-evaluation", "torn-picture"):
        make(outputs, composed(f"seed={len(name)}"), [f"seed={len(name)}"], name=name, pictures={"samples": png()})
    (outputs / "torn-history" / "history.jsonl").write_text('{"step": 1, "val/elbo": -3}\n{"step": \n')
    (outputs / "torn-evaluation" / "evaluation.json").write_text('{"a": {"protocol": 3}}')
    (outputs / "torn-picture" / "pictures" / "samples.png").write_bytes(png()[:200])
    (outputs / "foreign").mkdir()
    (outputs / "foreign" / "thesis.tex").write_text("x")
    (outputs / "oracle").mkdir()
    (outputs / "oracle" / "config.yaml").write_text("d: 2\n")
    (outputs / "empty").mkdir()
    for name, age in (("beginning", 0), ("left", 3600)):  # what a launcher has made, and no run has claimed
        (outputs / name).mkdir()
        (log := outputs / name / "job.log").write_text("x")
        os.utime(log, (time.time() - age,) * 2)
    (outputs / ".slurm").mkdir()
    (outputs / "study.journal").write_text("x")

    found = payload(collect(outputs))
    json.dumps(found, allow_nan=False)
    why = {one["folder"]: one["why"] for one in found["broken"]}
    assert set(why) == {
        *("torn-record", "foreign-record", "list-record", "torn-config", "binary-config", "no-config"),
        *("torn-history", "torn-evaluation", "torn-picture", "foreign", "oracle", "left"),
    }
    assert "run.json is torn" in why["torn-record"] and "not the record" in why["foreign-record"]
    assert "config.yaml" in why["torn-config"] and str(outputs) not in why["torn-config"]
    assert "no run" in why["foreign"] and "without curves" in why["torn-history"]
    assert "samples.png is no picture" in why["torn-picture"]
    assert {one["folder"] for one in found["runs"]} >= {"torn-history", "torn-evaluation", "torn-picture"}
    assert len(found["runs"]) == 6 and len({one["id"] for one in found["runs"]}) == 6
    states = {one["state"]: one for one in found["runs"]}
    assert found["size"] | {"seconds": 0} == {"finished": 4, "failed": 1, "partial": 1, "running": 0, "seconds": 0}
    assert states["failed"]["log"] == ["one", "two", "Traceback: it broke"] and "kl not" in states["failed"]["error"]
    for kind in ("html", "csv", "parquet", "md", "tex"):
        assert report(outputs, f"format={kind}", f"file={tmp_path / kind}") == 0


def test_no_record_and_no_configuration_stops_it(outputs):
    """Whatever valid JSON or YAML stands where something else is expected."""
    good = make(outputs, composed(), ["d=2"])
    known, config = record.read(good), runs.read_config(good)
    (outputs / "rows").mkdir()
    odd = [
        None,
        3,
        -1.5,
        math.inf,
        math.nan,
        True,
        "text",
        "",
        [],
        [[1], {"a": 2}],
        {"a": {"b": 1}},
        "9" * 400,
        10**400,
    ]
    rng, n = np.random.default_rng(0), 0
    for part, content in (("run.json", known), ("config.yaml", config), ("results", known["results"])):
        for key in content:
            value = odd[rng.integers(len(odd))]
            folder = outputs / f"odd-{n}"
            shutil.copytree(good, folder)
            n += 1
            if part == "results":
                runs.write(folder / "run.json", known | {"results": content | {key: value}, "fingerprint": str(n)})
            else:
                runs.write(folder / part, content | {key: value})
    for i, value in enumerate(odd):
        folder = shutil.copytree(good, outputs / f"history-{i}")
        row = json.dumps({"step": i, "val/elbo": value, "train/elbo": value, "train/elbo_total": value})
        (folder / "history.jsonl").write_text(row + "\n" + json.dumps(value) + "\n")
        for j, key in enumerate(("s2", "shape", "_target_")):
            changed = config | {"likelihood": config["likelihood"] | {key: value}}
            runs.write(shutil.copytree(good, outputs / f"likelihood-{i}-{j}") / "config.yaml", changed)
    found = payload(collect(outputs))
    json.dumps(found, allow_nan=False)
    assert len(found["runs"]) + len(found["broken"]) >= n
    vae_lab.report.frame(outputs)
    tables.latex(tables.table(collect(outputs)))


def test_no_runs_at_all(outputs, capsys):
    outputs.mkdir()
    assert report(outputs) == 0 and "runs         0" in capsys.readouterr().out
    assert "no runs" in (outputs / "report.html").read_text()
    assert report(outputs, "format=md") == report(outputs, "format=csv") == report(outputs, "format=tex") == 0


def test_a_run_that_was_moved_aside_is_asked_for(outputs):
    folder = make(outputs, composed(), ["d=2"])
    record.aside(folder)
    make(outputs, composed(), ["d=2"])
    assert len(payload(collect(outputs))["runs"]) == 1
    found = payload(collect(outputs, ["old=true,false"]))["runs"]
    assert len({one["id"] for one in found}) == 2


def test_names_are_text_in_every_format(outputs, tmp_path):
    config = composed() | {"hostile": HOSTILE}
    make(outputs, config, [f"hostile={HOSTILE}"], name=f"x{HOSTILE.replace('/', '')}")
    make(outputs, composed(), ["d=2"])
    for kind in ("html", "csv", "parquet", "md", "tex"):
        assert report(outputs, f"file={tmp_path / f'report.{kind}'}", "seeds=each") == 0
    page, md, tex = ((tmp_path / f"report.{kind}").read_text() for kind in ("html", "md", "tex"))
    assert "<script>alert" not in page and "\\u003cscript\\u003ealert" in page
    assert "<script>" not in md and "&lt;script&gt;alert('\\|&amp;\\_%\\$" in md
    header, *_ = md.splitlines()
    columns = [len(re.findall(r"(?<!\\)\|", line)) for line in md.splitlines() if line.startswith("|")]
    assert len(set(columns)) == 1 and header.count("hostile")
    assert r"\textless{}script\textgreater{}alert('\textbar{}\&\_\%\$\#\{\}\textasciitilde{}\textasciicircum{}" in tex
    for df in (pd.read_csv(tmp_path / "report.csv"), pd.read_parquet(tmp_path / "report.parquet")):
        assert set(df["hostile"].dropna()) == {HOSTILE}


# --- the tables


def test_the_frame(sweep, tmp_path):
    df = vae_lab.report.frame(sweep, "d=8 'likelihood.s2<0.1'")
    assert len(df) == 4 and set(df["d"]) == {8} and set(df["state"]) == {"finished"}
    assert (
        set(df["likelihood"]) == {"gaussian"} and str(df["d"].dtype) == "Int64" and df["likelihood.s2"].dtype == float
    )
    for _, row in df.iterrows():
        known = record.read(sweep / row["run"])
        assert row["fingerprint"] == known["fingerprint"] and row["test/elbo"] == known["results"]["test/elbo"]
        assert row["test/elbo_se"] == 0.9 and row["test/elbo:protocol"].startswith("test split, n = 360")
        assert row["encoder.hidden"] == "[256, 256]"
    for kind, read in (("csv", pd.read_csv), ("parquet", pd.read_parquet)):
        assert report(sweep, "where=d=8", f"file={tmp_path / f'x.{kind}'}") == 0
        again = read(tmp_path / f"x.{kind}")
        assert again["test/elbo"].tolist() == vae_lab.report.frame(sweep, "d=8")["test/elbo"].tolist()


def test_kinds_that_mix_become_text(outputs, tmp_path):
    make(outputs, composed("trainer.gradient_clip_val=1"), ["d=2"])
    make(outputs, composed("seed=1") | {"d": "two"}, ["seed=1"])
    df = vae_lab.report.frame(outputs)
    assert sorted(df["d"]) == ["2", "two"] and df["trainer.gradient_clip_val"].isna().sum() == 1
    df.to_parquet(tmp_path / "x.parquet")


def test_a_papers_table(sweep, tmp_path):
    assert report(sweep, "where=d=8", f"file={tmp_path / 'x.md'}") == 0
    header, rule, *body = [line for line in (tmp_path / "x.md").read_text().splitlines() if line.startswith("|")]
    assert header == "| likelihood.s2 | objective.V | ELBO | KL | reconstruction | active units | seeds |"
    assert rule == "| --- | --- | ---: | ---: | ---: | ---: | ---: |" and len(body) == 4
    df = vae_lab.report.frame(sweep, "d=8")
    best, *others = (
        df.groupby(["likelihood.s2", "objective.V"])["test/elbo"]
        .agg(["mean", "sem"])
        .sort_values("mean", ascending=False)
        .itertuples()
    )
    s2, V = best.Index
    assert body[0].startswith(f"| {s2:g} | {V} | {best.mean:.3f} ± {best.sem:.3f} |") and body[0].endswith("| 2 |")
    assert len(others) == 3
    assert report(sweep, "where=d=8", "y=test/kl", f"file={tmp_path / 'x.tex'}") == 0
    tex = (tmp_path / "x.tex").read_text()
    assert (
        tex.count(r" \\") == 5
        and r"\begin{tabular}{llrr}" in tex
        and r"likelihood.s2 & objective.V & KL & seeds" in tex
    )
    assert r"$\pm$" in tex and tex.count("\\toprule") == tex.count("\\bottomrule") == 1
    assert report(sweep, "where=d=8", "seeds=each", f"file={tmp_path / 'y.md'}") == 0
    assert (tmp_path / "y.md").read_text().count("\n| ") == 8 + 1


# --- the command


def test_the_command_writes_a_page(sweep, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(sweep.parent)
    assert report("outputs/", "where=data=digits d=8", "x=likelihood.s2", "y=test/kl", "color=objective.V") == 0
    page = (sweep / "report.html").read_text()
    assert "runs         8" in capsys.readouterr().out and page.lower().startswith("<!doctype html>")
    assert '"defaults":{"x":"likelihood.s2","y":"test/kl","color":"objective.V"}' in page
    assert report(f"file={tmp_path / 'new' / 'page.html'}") == 0 and (tmp_path / "new" / "page.html").exists()
    (sweep / "report.html").unlink()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "there is no folder nowhere"),
        (["outputs", "other"], "only one folder of runs can be given, got outputs and other"),
        (["wear=d=8"], "wear=d=8: no key 'wear'; did you mean 'where'?"),
        (["d=8"], "d=8: no key 'd'; a condition on runs is where='d=8'"),
        (["where=sate=failed"], "sate: no run has this key; did you mean 'state'?"),
        (["x=likelihod.s2"], "got 'likelihod.s2'; did you mean 'likelihood.s2'?"),
        (["x=batch_size"], "x must be a key in which these runs differ (d, seed, likelihood.s2, objective.V)"),
        (
            ["y=test/elbow"],
            "y must be a metric that one of these runs has, got 'test/elbow'; did you mean 'test/elbo'?",
        ),
        (["y=test/elbow", "format=md"], "y must be a metric that one of these runs has"),
        (["color=sed"], "color must be a key in which these runs differ"),
        (["format=pdf"], "format must be one of html, csv, parquet, md, tex, got 'pdf'"),
        (["file=x.pdf"], "file's ending must be one of html"),
        (["format=md", "seeds=all"], "seeds must be one of mean, each, got 'all'"),
        (["file=outputs", "format=md"], "file must be a file to write, outputs is a folder"),
    ],
)
def test_mistakes_are_one_line(sweep, monkeypatch, words, message):
    monkeypatch.chdir(sweep.parent)
    said = report(*words)
    assert isinstance(said, str) and said.startswith("error: ") and message in said and "\n" not in said
    assert not (sweep / "report.html").exists()


def test_help_lists_every_key(capsys):
    from vae_lab import hints

    assert report("--help") == 0
    said = capsys.readouterr().out
    keys = [key for key in hints.read("report") if key not in ("defaults", "paths")] + ["paths.outputs"]
    assert said.startswith("usage: vae-lab report [folder]") and all(f"  {key}=" in said for key in keys)


def test_mistakes_and_tables_need_no_torch(sweep):
    code = (
        "import sys; from vae_lab.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as exit: print(exit.code)\n"
        "assert not {'torch', 'plotly', 'wandb'} & set(sys.modules)\n"
    )
    for words, said in (
        (["report", str(sweep), "x=de"], "error: x must be"),
        (["report", str(sweep), "format=md"], "16"),
    ):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and said in done.stdout, done.stderr


def test_the_script_is_the_command(sweep, tmp_path):
    script = [sys.executable, str(ROOT / "scripts" / "report.py"), str(sweep), f"file={tmp_path / 'x.csv'}"]
    subprocess.run(script, check=True, capture_output=True, timeout=120)
    assert len(pd.read_csv(tmp_path / "x.csv")) == 16


def test_completion_knows_the_command(capsys, monkeypatch):
    monkeypatch.setenv("COMP_LINE", "vae-lab re")
    main(["-sc", "query=bash"])
    assert "report" in capsys.readouterr().out.split()
    monkeypatch.setenv("COMP_LINE", "vae-lab report outputs/ fo")
    main(["-sc", "query=bash"])
    assert capsys.readouterr().out.split() == ["format="]


# --- many runs, and real ones

PEAK = """
import resource, sys
from pathlib import Path
from vae_lab.cli import main
main(sys.argv[1:])
if sys.platform == "linux":  # where getrusage tells the parent's too, of before this process was itself
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    print("peak", int(line.split()[1]) * 1024)
else:
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_five_hundred_runs(outputs):
    names = ("reconstructions", "samples", "traversals", "manifold", "latent_scatter")
    pictures = {name: png(seed=i) for i, name in enumerate(names)}
    grid(outputs, (2, 4, 8, 16, 32), (1, 2, 5, 10, 20), (0.01, 0.02, 0.05, 0.1, 0.2), range(4), pictures, epochs=100)
    words = [sys.executable, "-c", PEAK, "report", str(outputs)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split("peak")[1]) < 10**9
    assert 5e6 < (outputs / "report.html").stat().st_size < 15e6


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.xdist_group("swept")
def test_a_real_sweep(swept, tmp_path):
    found = payload(collect(swept))
    assert len(found["runs"]) == 24 and found["swept"] == "12 d × s2 × V cells, 2 seeds each" and not found["broken"]
    assert found["size"]["finished"] == 24 and found["size"]["seconds"] > 0
    for one in found["runs"]:
        metrics = json.loads((swept / one["folder"] / runs.METRICS).read_text())
        for name in ("test/elbo", "test/kl", "test/rec", "val/elbo", "test/active_units"):
            assert one["results"][name] == pytest.approx(metrics[name], rel=1e-8)
        assert one["errors"]["test/elbo"] == pytest.approx(metrics["test/elbo_se"], rel=1e-8)
        assert one["kl_dims"] and sum(one["kl_dims"]) == pytest.approx(metrics["test/kl"], rel=1e-5)
        assert one["curves"]["epoch"] == [1, 2, 3, 4, 5, 6] and one["curves"]["examples"][-1] == 6 * 1257
        assert one["curves"]["values"]["val/elbo"][-1] == pytest.approx(metrics["val/elbo"], rel=1e-5)
        assert one["predicted"] == min(one["axes"]["d"], 8 if one["axes"]["likelihood.s2"] == 0.02 else 7)
        assert {"reconstructions", "samples", "traversals"} <= set(one["pictures"])
    assert found["protocols"][found["runs"][0]["protocol"]["test/elbo"]]["facts"]["n"] == 360
    df = vae_lab.report.frame(swept)
    wide = df.pivot_table("test/elbo", ["d", "likelihood.s2", "seed"], "objective.V")
    interval = stats.ttest_rel(wide[5], wide[1]).confidence_interval(0.95)
    paired = vae_lab.report.compare(collect(swept).rows, "test/elbo", "objective.V", 1, 5)
    assert paired.n == 12 and (paired.low, paired.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert "12 d × s2 × V cells" in render(found)
