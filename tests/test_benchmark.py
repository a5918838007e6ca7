"""The benchmark: contenders do the same work, and figures are reckoned, doubted and shown as they should. Nothing here
depends on how long anything takes."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from benchmarks import comparison, launched, machine, output  # noqa: E402
from benchmarks.comparison import About, Comparison, Goal, Taken, compare  # noqa: E402
from benchmarks.contenders import Job, bare, lightning, shipped  # noqa: E402
from benchmarks.machine import Noise  # noqa: E402
from benchmarks.worker import Missing, Worker, save  # noqa: E402
from benchmarks.workloads import CONV, S2, W1, W5, WORKLOADS, read, write  # noqa: E402

linux = pytest.mark.skipif(not Path("/proc/stat").exists(), reason="reads /proc")

# --- the same work

SMALL = {
    "bernoulli": W1._replace(hidden=[7], d=3, side=8, batch=6),
    "bernoulli, V = 3": W1._replace(hidden=[7], d=3, side=8, batch=6, V=3),
    "gaussian": W5._replace(hidden=[7], d=3, batch=6),
    "gaussian, V = 3": W5._replace(hidden=[7], d=3, batch=6, V=3),
}


def problem(work):
    """Weights, data and noise."""
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    x = draw.random((6, work.side**2), dtype=np.float32)
    eps = draw.standard_normal((work.V, 6, work.d)).astype(np.float32)
    return bare.arrays(bare.Net(work)), x, eps


def oracle(work, weights, x, eps):
    """Minus (7), in double precision, by numpy and the densities' formulas alone."""
    W1, b1, W2, b2, W3, b3, W4, b4 = (w.astype(np.float64) for w in weights)
    mu, log_sigma = np.split(np.tanh(x @ W1.T + b1) @ W2.T + b2, 2, axis=-1)
    y = np.tanh((mu + np.exp(log_sigma) * eps) @ W3.T + b3) @ W4.T + b4
    p = 1 / (1 + np.exp(-y))
    log_p = {
        "bernoulli": x * np.log(p) + (1 - x) * np.log(1 - p),
        "gaussian": -((x - y) ** 2) / (2 * S2) - 0.5 * math.log(2 * math.pi * S2),
    }[work.likelihood]
    kl = 0.5 * (mu**2 + np.exp(2 * log_sigma) - 1 - 2 * log_sigma).sum(-1)
    return float((kl - log_p.sum(-1).mean(0)).mean())


def config(work, tmp_path):
    job = Job("shipped", work, str(write(work._replace(steps=1), tmp_path)), str(tmp_path), kind="eager")
    contender = shipped.Shipped.__new__(shipped.Shipped)  # as its constructor sets what holds for a whole process
    contender.job, contender.seed = job, -1
    shipped.register_resolvers()
    return contender.config()


@pytest.mark.parametrize("name", SMALL)
def test_contenders_have_the_same_loss(name, tmp_path):
    work = SMALL[name]
    weights, x, eps = problem(work)
    wanted = oracle(work, weights, x, eps)
    assert bare.scored(bare.Net(work), weights, x, eps) == pytest.approx(wanted, rel=1e-5)
    assert shipped.scored(config(work, tmp_path), weights, x, eps) == pytest.approx(wanted, rel=1e-5)
    lit = lightning.DefaultLit(work)
    bare.fill(lit, weights)
    torch.testing.assert_close(
        lit.net.losses(torch.from_numpy(x), torch.from_numpy(eps))[0].item(), wanted, rtol=1e-5, atol=0
    )


def test_the_convolutional_networks_are_the_same(tmp_path):
    work = CONV._replace(hidden=[3, 4], d=3)
    weights, x, eps = problem(work)
    ours = shipped.scored(config(work, tmp_path), weights, x, eps)
    assert ours == pytest.approx(bare.scored(bare.Net(work), weights, x, eps), rel=1e-5)


@pytest.mark.parametrize("module", ["jax_scan", "pythae_vae"])
@pytest.mark.parametrize("name", ["bernoulli", "bernoulli, V = 3", "gaussian"])
def test_peers_have_the_same_loss(module, name, tmp_path):
    """Where VAE_LAB_PEERS names an interpreter that has them."""
    work = SMALL[name]._replace(steps=3)
    if module == "pythae_vae" and work.V > 1:
        pytest.skip("pythae has one sample")
    given = problem(work)
    job = Job(module, work, str(write(work, tmp_path)), str(tmp_path))
    try:
        with Worker(job, os.environ.get("VAE_LAB_PEERS", sys.executable)) as peer:
            assert peer.loss(save(tmp_path / "given.npz", *given)) == pytest.approx(oracle(work, *given), rel=1e-5)
            taken = peer()
            assert taken.value > 0 and math.isfinite(taken.loss)
    except Missing as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("work", [*SMALL.values(), W5._replace(V=4)], ids=lambda work: f"{work.likelihood} {work.V}")
def test_the_products_are_those_of_a_step(work):
    """torch counts them."""
    net, x = bare.Net(work), torch.rand(work.batch, work.side**2)
    with FlopCounterMode(display=False) as counter:
        net.losses(x)[0].backward()
    assert counter.get_total_flops() == work.flops()


def test_a_contender_that_breaks_says_why(tmp_path):
    file = write(W5._replace(steps=1, batch=2), tmp_path)
    with pytest.raises(RuntimeError, match=r"products has ended: .*unpack"):
        Worker(Job("products", W5._replace(hidden=[]), str(file), str(tmp_path)))
    with pytest.raises(Missing, match="not_there is not installed"):
        Worker(Job("not_there", W5, str(file), str(tmp_path)))


@pytest.mark.parametrize("name", WORKLOADS)
def test_data_are_pixels(name, tmp_path):
    work = WORKLOADS[name]._replace(steps=2)
    x = read(write(work, tmp_path))
    assert x.shape == (2 * work.batch + 1, work.side**2) and x.dtype == np.float32
    assert x.min() >= 0 and 0.9 < x.max() <= 1 and x.std() > 0.2


# --- figures


def test_contenders_take_turns_and_the_first_turn_does_not_count():
    order = []

    def contender(name):
        def segment():
            order.append(name)
            return Taken(
                float(len(order)), loss=1.0 if name == "a" else None, also={"more": 2.0} if name == "b" else {}
            )

        return segment

    found = compare(About("", "", "s"), {name: contender(name) for name in "ab"}, 3)
    assert "".join(order) == "abbaabba"
    assert found.segments == {"a": [4, 5, 8], "b": [3, 6, 7], "more": [2, 2, 2]}
    assert found.losses == {"a": [1, 1, 1]} and found.reference == "a"


RATES = {"one": [100.0, 110.0, 90.0, 100.0, 104.0], "two": [200.0, 210.0, 190.0, 230.0, 204.0]}


def compared(segments=RATES, losses=None, noise=None, **about):
    return Comparison(About("W", "a workload", "steps/s", **about), segments, losses or {}, noise)


def test_ratios_are_those_of_each_turn():
    found = compared(goals=[Goal("two", "one", 2.0, 3.0), Goal("two", "one", 1.9, most=True), Goal("two", "absent", 1)])
    ratio = found.ratio("two", "one")
    each = np.array(RATES["two"]) / np.array(RATES["one"])
    assert ratio == pytest.approx([np.median(each), *np.quantile(each, [0.25, 0.75])])
    assert [goal.met(ratio.median) for goal, _ in found.measured()] == [True, False]
    assert found.spread("one") == pytest.approx(0.04) and found.median("two") == 204


@pytest.mark.parametrize(
    ("given", "doubt"),
    [
        ({}, None),
        ({"noise": Noise(0.1, 0.05, 2)}, None),
        ({"segments": {"one": [100.0, 100, 100, 100]}}, "4 segments, of at least 5"),
        ({"segments": {"one": [60.0, 80, 100, 120, 140]}}, "of one spreads by 40%"),
        ({"noise": Noise(0.1, 0.7, 2)}, "other processes took 0.7 of 2 cores"),
        ({"noise": Noise(1.5, 0.0, 2)}, "load average was 1.5"),
        ({"losses": {"one": [5.0, 5.1, 4.9, 5.0, 5.0], "two": [5.1, 5.0, 5.0, 4.9, 5.1]}}, None),
        (
            {"losses": {"one": [5.0, 5.1, 4.9, 5.0, 5.0], "two": [5.6, 5.5, 5.5, 5.4, 5.6]}},
            "two does not come to the loss",
        ),
    ],
)
def test_doubts(given, doubt):
    doubts = compared(**given).doubts()
    assert doubts == [] if doubt is None else doubt in "; ".join(doubts) and len(doubts) == 1


def test_losses_of_the_same_distribution_are_rarely_apart():
    """One pair in a thousand."""
    draw = np.random.default_rng(0)
    assert sum(comparison.apart(*draw.normal(size=(2, 5)).tolist()) for _ in range(2000)) <= 10
    assert all(comparison.apart(draw.normal(size=5).tolist(), draw.normal(20, size=5).tolist()) for _ in range(100))


# --- the machine


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (
            "cpu family: 25\nmodel\t: 17\nmodel name: Some EPYC\nflags: fpu avx2 avx512f\n\n",
            "(family 25, model 17) AVX512F",
        ),
        ("cpu family: 26\nmodel\t: 2\nmodel name: Some EPYC\nflags: fpu avx2\n\n", "(family 26, model 2) AVX2"),
        ("model name: Some EPYC\nFeatures: asimd\n", ""),
    ],
)
def test_processors_of_one_name_are_told_apart(tmp_path, monkeypatch, said, found):
    (tmp_path / "cpuinfo").write_text(said)
    monkeypatch.setattr(machine, "PROC", tmp_path)
    assert machine.processor() == f"Some EPYC {found}".strip()


BURN = "import time\nwhile time.process_time() < 0.6: pass"  # the system counts in ticks


@linux
def test_the_work_of_others_is_not_ours():
    before, ours = machine.others(), machine.tree()
    subprocess.run([sys.executable, "-c", BURN], check=True)
    assert machine.tree() - ours >= 0.5 * os.sysconf("SC_CLK_TCK")
    read_end, write_end = os.pipe()
    # whoever starts it ends at once, so that it is nobody's child
    subprocess.run(["sh", "-c", f'"{sys.executable}" -c "{BURN}" & exit'], check=True, pass_fds=[write_end])
    os.close(write_end)
    assert os.read(read_end, 1) == b""  # it has ended
    os.close(read_end)
    assert machine.others() - before >= 0.5


@linux
def test_processes_are_confined_to_cores():
    before = machine.cores()
    with machine.confined(1):
        child = "import os; print(len(os.sched_getaffinity(0)))"
        assert subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True).stdout == "1\n"
    assert machine.cores() == before


WRITES = """
import json, pathlib, sys, time
outputs = pathlib.Path(sys.argv[1])
for order in sys.argv[2:]:
    for name in order:
        folder = outputs / name
        folder.mkdir(exist_ok=True)
        with (folder / "history.jsonl").open("a") as file:
            n = len((folder / "history.jsonl").read_text().splitlines())
            rate = {0: 7.0, 1: 1000.0, 2: 3000.0, 3: 9.0}[n]
            file.write(json.dumps({"step": 10 * (n + 1), "train/images_per_second": rate}) + "\\n")
    time.sleep(0.3)
"""


def test_the_rate_of_runs_is_what_they_log_together(tmp_path):
    """Two epochs between the first and the last, at 1000 and 3000 images/s: 1500 in the mean, in batches of 100; two
    runs."""
    words = [sys.executable, "-c", WRITES, str(tmp_path / "both"), "ab", "ab", "ab", "ab"]
    _, found = launched.trained(W5, words, tmp_path / "both")
    assert found.own == pytest.approx(2 * 15) and found.seen > 0


def test_runs_that_take_turns_have_no_common_rate(tmp_path):
    words = [sys.executable, "-c", WRITES, str(tmp_path / "turns"), "a", "a", "a", "b", "b", "b"]
    _, found = launched.trained(W5, words, tmp_path / "turns")
    assert found.own is None and found.seen > 0


def test_a_command_that_fails_is_told():
    with pytest.raises(RuntimeError, match="ended with 3: oh dear"):
        launched.seconds([sys.executable, "-c", "print('oh dear'); raise SystemExit(3)"])


# --- what is shown

PLAIN = compared(goals=[Goal("two", "one", 2.0, 3.0)], notes=["three: skipped"], noise=Noise(0.1, 0.7, 2))
POINTS = [
    compared({"one": [1e4] * 5, output.ROOF: [1e6] * 5}, flops=5000, axis="N", at=at, goals=[], notes=[])
    for at in (16, 2)
]
FOUND = output.Found("training", {"processor": "abacus"}, [PLAIN])


def test_figures_survive_the_file(tmp_path):
    for comparisons in ([PLAIN], POINTS):
        output.write(FOUND._replace(comparisons=comparisons), tmp_path / "found.json")
        assert output.read(tmp_path / "found.json") == FOUND._replace(comparisons=comparisons)
    content = json.loads((tmp_path / "found.json").read_text())
    assert content["comparisons"][0]["medians"]["one"] == 1e4


def test_tables():
    page = output.markdown(FOUND)
    assert "| W | two | 204 steps/s | 4,902 µs | 2.00 (1.96–2.11) | 5% |  |" in page
    assert "| W | two / one | 2.00 (1.96–2.11) ✓ | ≥ 2 | 3 |" in page
    assert "three: skipped; **not to be trusted: other processes took 0.7 of 2 cores**" in page
    assert page.endswith("processor abacus.\n")
    assert "| 2 | 100 | 1 | 5 |\n| 16 | 100 | 1 | 5 |" in output.markdown(FOUND._replace(comparisons=POINTS))


def test_tables_find_their_place_in_a_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- benchmark training -->\nold\n<!-- end -->\nafter <!-- end -->\n")
    for _ in range(2):
        output.insert(FOUND, page, tmp_path / "images" / "found.png")
    text = page.read_text()
    assert text.startswith("before\n<!-- benchmark training -->\n\n| workload") and "old" not in text
    assert (
        text.endswith("processor abacus.\n\n![training](images/found.png)\n\n<!-- end -->\nafter <!-- end -->\n")
        and text.count("abacus") == 1
    )
    with pytest.raises(ValueError, match="no place <!-- benchmark packed -->"):
        output.insert(FOUND._replace(benchmark="packed"), page, None)


@pytest.mark.parametrize("comparisons", [[PLAIN, PLAIN], POINTS, [compared({"one": [1.0] * 5})]])
def test_pictures(comparisons, tmp_path):
    output.plot(FOUND._replace(comparisons=comparisons), tmp_path / "found.png")
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_has_a_place_for_each_benchmark():
    from benchmarks.command import BENCHMARKS

    page = (ROOT / "docs" / "performance.md").read_text()
    for name in BENCHMARKS:
        assert f"<!-- benchmark {name} -->" in page


# --- the commands

TINY = {
    "training": "--only W5 --steps 20",
    "startup": "--cells 2 --parts answers first",
    "evaluation": "--images 4 --samples 10",
}
LONGER = {
    "packed": "--runs 2 --steps 20 --whole-steps 20 --timed 1",
    "sweep": "--cells 2 --seconds 0.1",
    "startup of a pool": "--short 2 --parts pool",
    "scaling by models": "--axes N --at 2 --steps 20",
    "scaling by shape": "--axes d --at 2 --steps 20 --models 2",
    "scaling by processes": "--axes processes --at 1 --steps 20",
}


@pytest.mark.parametrize(
    ("benchmark", "words"),
    [
        *(pytest.param(name.split()[0], TINY[name], marks=pytest.mark.slow, id=name) for name in TINY),
        *(pytest.param(name.split()[0], LONGER[name], marks=pytest.mark.minutes, id=name) for name in LONGER),
    ],
)
def test_each_benchmark_runs(benchmark, words, tmp_path):
    files = {key: tmp_path / f"found.{end}" for key, end in (("json", "json"), ("markdown", "md"), ("plot", "png"))}
    words = [benchmark, *words.split(), "--segments", "1", *(f"--{key}={file}" for key, file in files.items())]
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "benchmark.py"), *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = output.read(files["json"])
    assert found.benchmark == benchmark and found.comparisons
    for c in found.comparisons:
        assert len(c.segments) > 1 and all(len(v) == 1 and v[0] > 0 for v in c.segments.values())
        assert all(math.isfinite(loss) for losses in c.losses.values() for loss in losses)
    assert output.markdown(found) == files["markdown"].read_text() and files["plot"].stat().st_size > 1000
    assert not (tmp_path / "outputs").exists()
    shown = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), "tables", str(files["json"])]
    assert (
        subprocess.run(shown, capture_output=True, text=True, check=True).stdout.strip()
        == output.markdown(found).strip()
    )
