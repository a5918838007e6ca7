"""`vae-lab oracle ...`: exact answers before any training, the proof sheet, and the figures that explain."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml

import vae_lab
from vae_lab import decoders, diagrams, encoders, likelihoods, objectives, posteriors, priors
from vae_lab.cli import main
from vae_lab.commands import oracle_check
from vae_lab.commands.oracle_naive_mc import growth
from vae_lab.commands.oracle_ppca import with_weights
from vae_lab.data.sources import Digits
from vae_lab.interfaces import Batch
from vae_lab.objectives import Elbo
from vae_lab.oracles import PPCA, Grid, LinearGaussian
from vae_lab.proofs import SUITE, Row
from vae_lab.proofs.models import example, linear, sigma_points
from vae_lab.vae import VAE


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def oracle(*arguments):
    """Runs it in this process; the new folder of results."""
    before = set(Path("outputs").glob("*"))
    main(["oracle", *arguments])
    [new] = set(Path("outputs").glob("*")) - before
    return new


def refused(capsys, *arguments):
    """The one line that a wrong command is answered with; it leaves no folder."""
    with pytest.raises(SystemExit) as exit:
        main(["oracle", *arguments])
    said = capsys.readouterr().err + (f"{exit.value.code}\n" if isinstance(exit.value.code, str) else "")
    assert exit.value.code not in (0, None)
    assert said.count("\n") == 1 and said.startswith("error: ")
    assert not any(Path("outputs").glob("*"))
    return said.strip()


# --- ppca


@pytest.mark.parametrize("words", [["likelihood.s2=0.02"], ["likelihood=gaussian_optimal"]], ids=str)
def test_ppca_leaves_a_run_whose_elbo_is_log_p(words):
    folder = oracle("ppca", "d=5", *words)
    found, splits = json.loads((folder / "ppca.json").read_text()), Digits([64], 180, 360).load()
    x, x_test = splits.train.x.double() / 16, splits.test.x.double() / 16
    ppca = PPCA.of(x)
    s2 = 0.02 if "s2" in words[0] else ppca.best_s2(5)
    assert found["s2"] == pytest.approx(s2, rel=1e-12)
    assert found["log_p"] == pytest.approx(ppca.log_p(5, s2), abs=1e-9)
    assert found["log_p_test"] == pytest.approx(ppca.log_prob(x_test, 5, s2).mean().item(), abs=1e-9)
    assert found["best_s2"] == pytest.approx(ppca.best_s2(5), rel=1e-12)
    assert found["k"] == 5 and found["eigenvalues_above_s2"] == int((ppca.eigenvalues > s2).sum())
    assert found["largest_gap"] < 1e-6

    vae = vae_lab.load(folder).double()
    state = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    vae.load_state_dict({k.removeprefix("vae."): v for k, v in state.items()})  # as they were, in float64
    with torch.no_grad():
        terms = Elbo(10)(vae, Batch(x_test.view(-1, 1, 8, 8), torch.arange(len(x_test))), sigma_points(5, len(x_test)))
    torch.testing.assert_close(terms.elbo, ppca.log_prob(x_test, 5, s2), rtol=0, atol=1e-6)


def test_evaluate_understands_it():
    folder = oracle("ppca", "d=3", "likelihood.s2=0.05")
    found = json.loads((folder / "ppca.json").read_text())
    main(["evaluate", f"run={folder}", "V=20"])
    [scores] = [v for v in json.loads((folder / "evaluation.json").read_text()).values() if "elbo" in v]
    assert scores["elbo"] == pytest.approx(found["log_p_test"], abs=4 * found["log_p_test_se"])
    assert yaml.safe_load((folder / "config.yaml").read_text())["encoder"]["_target_"] == "vae_lab.encoders.Linear"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("ppca likelihood=bernoulli", "likelihood must be gaussian or gaussian_optimal"),
        ("ppca encoder=mlp", "encoder must be linear"),
        ("ppca decoder=conv", "decoder must be linear"),
        ("ppca classes=10", "classes must be 0"),
        ("ppca d=0", "d must be a whole number >= 1, got 0"),
        ("ppca likelihood.s2=-1", "likelihood.s2 must be a finite number > 0, got -1"),
        ("ppca likelihood=bernouli", "did you mean 'bernoulli'?"),
        ("ppca objective.V=0", "objective.V must be"),
        ("ppca lr=1", "no key 'lr'"),
        ("check only=[21]", "only must be among"),
        ("naive_mc m=1", "m must be a whole number >= 2, got 1"),
        ("naive_mc ds=[0]", "ds must be a whole number >= 1, got 0"),
        ("naive_mc ds=[200]", "d must be below"),
        ("schematic", "run must be a run's folder"),
        ("schematic run=nowhere", "is not the folder of a run"),
    ],
)
def test_mistakes_are_one_line(words, why, capsys, unchecked):
    assert why in refused(capsys, *words.split())


def test_the_words_of_oracle(capsys):
    main(["oracle"])
    said = capsys.readouterr().out
    assert all(f"oracle {word} " in said for word in ("ppca", "check", "schematic", "naive_mc", "free_phi"))
    assert "train a VAE" not in said
    with pytest.raises(SystemExit) as exit:
        main(["oracle", "pcpa", "d=2"])
    assert "did you mean 'oracle ppca'?" in str(exit.value.code)
    main(["oracle", "ppca", "--help"])
    assert "\nvae-lab oracle ppca: " in capsys.readouterr().out


# --- check


def test_some_checks_hold():
    folder = oracle("check", "only=[3,9,16,17]")
    found = json.loads((folder / "check.json").read_text())
    assert found["holds"] and [p["equation"] for p in found["proofs"]] == ["3-4"] * 3 + ["9-10", "16", "16", "17"]
    assert all(row["holds"] for proof in found["proofs"] for row in proof["rows"])


WRONG = {
    "kl_per_dimension": lambda q, p: -0.5 * (1 + q.sigma.log() - q.sigma - q.mu**2),  # sigma read as a variance
    "DiagonalNormal.log_prob": lambda self, value: -0.5 * (((value - self.mu) / self.sigma) ** 2).sum(-1),
}


@pytest.mark.parametrize("broken", WRONG)
def test_what_is_broken_is_found(broken, monkeypatch, capsys):
    monkeypatch.setattr(f"vae_lab.distributions.{broken}", WRONG[broken])
    with pytest.raises(SystemExit) as exit:
        oracle("check", "only=[16]")
    assert exit.value.code not in (0, None) and "do not hold: 16" in str(exit.value.code)
    [file] = Path("outputs").glob("*/check.json")
    found = json.loads(file.read_text())
    assert not found["holds"] and "✗" in capsys.readouterr().out


def test_a_wrong_objective_is_found(monkeypatch):
    class Halved(objectives.Elbo):
        def forward(self, vae, batch, eps):
            terms = super().forward(vae, batch, eps)
            return terms._replace(elbo=terms.elbo - terms.kl / 2)

    monkeypatch.setattr("vae_lab.proofs.bound.Elbo", Halved)
    rows = [row for check in SUITE["3-4"] for row in check()]
    assert sum(not row.holds for row in rows) >= 2


@pytest.mark.slow
def test_every_check_holds():
    found = json.loads((oracle("check") / "check.json").read_text())
    assert found["holds"] and {p["equation"] for p in found["proofs"]} == set(SUITE)
    assert sum(len(p["rows"]) for p in found["proofs"]) > 120


@pytest.mark.parametrize(
    ("measured", "relation", "holds"),
    [(1.0, "=", True), (1.2, "=", False), (1.0, "!=", False), (1.2, "!=", True), (1.05, "<=", True), (1.2, "<=", False)]
    + [(0.95, ">=", True), (0.8, ">=", False)]
    + [(bad, relation, False) for bad in (math.nan, math.inf, -math.inf) for relation in ("=", "!=", "<=", ">=")],
)
def test_verdicts(measured, relation, holds):
    assert Row("", measured, relation, 1.0, 0.1).holds is holds


def test_every_equation_of_the_note_is_there():
    assert {str(i) for i in range(1, 21)} <= set().union(*map(oracle_check.within, SUITE))
    assert oracle_check.chosen([]) == list(SUITE)
    assert oracle_check.chosen([10, "ppca"]) == ["9-10", "ppca"] and oracle_check.chosen(16) == ["16"]


# --- the closed forms themselves


def test_linear_gaussian_against_quadrature():
    model, x = example(D=3, d=2, s2=0.3)
    grid, vae = Grid(2, 0.05, reach=9), linear(model)
    with torch.no_grad():
        log_p_x = vae.p_x(grid.z[:, None]).log_prob(x)
    log_p_z = vae.p_z().log_prob(grid.z[:, None])
    log_p = grid.log_integral(log_p_x + log_p_z)
    torch.testing.assert_close(model.log_prob(x), log_p, rtol=0, atol=1e-10)
    square = grid.log_integral(2 * log_p_x + log_p_z)
    torch.testing.assert_close(model.cv2(x), (square - 2 * log_p).exp() - 1, rtol=1e-9, atol=0)
    torch.testing.assert_close(model.posterior(x).log_prob(grid.z[:, None]), log_p_x + log_p_z - log_p)


def test_grids_are_small():
    with pytest.raises(ValueError, match=r"^d must be 1 or 2 for a grid, got 3"):
        Grid(3, 0.1)
    assert Grid(2, 0.5, reach=1).z.shape == (25, 2)


# --- figures


def test_naive_mc_tells_what_it_measured():
    folder = oracle("naive_mc", "ds=[1,3]", "m=2000", "n=40")
    found = json.loads((folder / "naive_mc.json").read_text())
    first, last = found["rows"]
    assert last["cv2"] > 5 * first["cv2"] and found["growth"] == pytest.approx((last["cv2"] / first["cv2"]) ** 0.5)
    # the median |error| of 40 data is right to 20 %, by the density of |N(0, 1)| at its median
    assert first["measured"] == pytest.approx(first["expected"], rel=4 * 1.17 / 40**0.5)
    assert (folder / "naive_mc.png").stat().st_size > 10_000 and "<svg" in (folder / "naive_mc.svg").read_text()[:500]
    assert growth([first]) is None


MODELS = [
    (encoders.Linear, {}, likelihoods.Gaussian, {"s2": 0.1}, Elbo(1)),
    (encoders.MLP, {"hidden": [5], "activation": "tanh"}, likelihoods.Bernoulli, {}, objectives.Iwae(5)),
    (encoders.MLP, {"hidden": [5], "activation": "tanh", "posterior": posteriors.Full(3), "classes": 4},
     likelihoods.GaussianPerPixel, {"floor": 0.1}, Elbo(2)),
    (encoders.Conv, {"channels": [4, 4], "activation": "relu"}, likelihoods.Gaussian, {"s2": 0.5},
     objectives.NoteEq20(1)),
    (encoders.Free, {"n": 10, "lr": 0.1, "steps": 5}, likelihoods.GaussianOptimal, {"rate": 0.1}, Elbo(1)),
]  # fmt: skip


@pytest.mark.parametrize(("encoder", "given", "likelihood", "own", "objective"), MODELS)
def test_schematic_fits(encoder, given, likelihood, own, objective):
    """No text leaves its box or the figure, none overlaps another."""
    shape = [1, 8, 8]
    p = likelihood(shape, **own)
    f = decoders.MLP(shape, 3, [5], "tanh", p.outputs, given.get("classes", 0))
    figure = diagrams.schematic(VAE(encoder(shape, 3, **given), f, p, priors.StandardNormal(3)), objective)
    renderer = figure.canvas.get_renderer()
    texts = [text.get_window_extent(renderer) for text in figure.axes[0].texts]
    boxes = [p.get_window_extent(renderer) for p in figure.axes[0].patches if hasattr(p, "get_boxstyle")]
    width, height = figure.canvas.get_width_height()
    for i, text in enumerate(texts):
        assert text.x0 >= 0 and text.y0 >= 0 and text.x1 <= width and text.y1 <= height
        assert not any(text.overlaps(other) for other in texts[:i])
        inside = [b for b in boxes if b.overlaps(text)]
        assert all(b.x0 < text.x0 and text.x1 < b.x1 and b.y0 < text.y0 and text.y1 < b.y1 for b in inside)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_schematic_of_a_run(capsys):
    folder = oracle("ppca", "d=3")
    main(["oracle", "schematic", f"run={folder}"])
    assert (folder / "schematic.png").stat().st_size > 10_000
    drawn = (folder / "schematic.svg").read_text()
    assert "Linear 64-3" in drawn and "[1, 8, 8]" in drawn and "s2 = 0.02" in drawn


def test_with_weights_is_float64():
    x = Digits([64], 0, 0).load().train.x.double() / 16
    parts = encoders.Linear([64], 2), decoders.Linear([64], 2), likelihoods.Gaussian([64], 0.1)
    vae = with_weights(VAE(*parts, priors.StandardNormal(2)), PPCA.of(x), 0.1)
    assert all(v.dtype == torch.float64 for v in vae.state_dict().values()) and vae.likelihood.s2.item() == 0.1


def test_linear_gaussian_gap_is_zero_only_for_orthogonal_columns():
    b = torch.zeros(2, dtype=torch.float64)
    skew = LinearGaussian(torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=torch.float64), b, 0.5)
    assert skew.mean_field_gap() > 0.1
    assert LinearGaussian(torch.eye(2, dtype=torch.float64), b, 0.5).mean_field_gap() == pytest.approx(0, abs=1e-12)
