"""A posterior for each datum (6): fitted to new data, trained as an encoder, and its two drawbacks."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import yaml
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.optim import SGD, Adam, SparseAdam

import vae_lab
from vae_lab import decoders, encoders, hints, likelihoods, posteriors, priors, schedules
from vae_lab.cli import main
from vae_lab.commands import oracle_free_phi
from vae_lab.data.module import InMemory
from vae_lab.data.preprocessing import Raw
from vae_lab.data.sampling import Shuffled, WithReplacement
from vae_lab.data.sources import Pixels, Source, Splits
from vae_lab.evaluation.drawbacks import refit_time, untouched
from vae_lab.evaluation.refinement import fitted, refine, with_encoder
from vae_lab.interfaces import Batch
from vae_lab.lit import LitVAE
from vae_lab.objectives import Elbo
from vae_lab.seeds import generator
from vae_lab.vae import VAE

ROOT = Path(__file__).parents[1]
D, d, S2 = 8, 3, 0.3


def noise(seed=0):
    return torch.Generator().manual_seed(seed)


def linear_vae(encoder=None, prior=None):
    """A linear decoder whose columns are not orthogonal: the best diagonal q is not the posterior."""
    torch.manual_seed(0)
    encoder = encoder or encoders.Linear([D], d)
    vae = VAE(encoder, decoders.Linear([D], d), likelihoods.Gaussian([D], S2), prior or priors.StandardNormal(d))
    with torch.no_grad():
        vae.decoder.f.weight.mul_(2)
    return vae.double()


def data(n=20, seed=1):
    """Draws from the linear model."""
    vae = linear_vae()
    with torch.no_grad():
        x = vae.sample(torch.randn(n, d, dtype=torch.float64, generator=noise(seed)))
    return x + S2**0.5 * torch.randn(n, D, dtype=torch.float64, generator=noise(seed + 1))


def optimum(vae, x):
    """mu and sigma of the best diagonal q: mu = M^-1 W^T (x - b), sigma_j^2 = s2 / M_jj, M = W^T W + s2 I."""
    W, b = vae.decoder.f.weight.detach(), vae.decoder.f.bias.detach()
    M = W.T @ W + S2 * torch.eye(d, dtype=W.dtype)
    return torch.linalg.solve(M, W.T @ (x - b).T).T, (S2 / M.diagonal()).sqrt().expand(len(x), d)


@torch.no_grad()
def exact_elbo(vae, x, encoder=None):
    """Of each datum: noise of mean 0 and covariance I averages a linear decoder's squared errors exactly."""
    points = d**0.5 * torch.eye(d, dtype=x.dtype)
    eps = torch.cat([points, -points])[:, None].expand(-1, len(x), -1)
    return Elbo(2 * d)(with_encoder(vae, encoder or vae.encoder), Batch(x, torch.arange(len(x))), eps).elbo


def table(mu, sigma):
    free = encoders.Free([D], d, len(mu), lr=0.1, steps=1).double()
    with torch.no_grad():
        free.phi.weight.copy_(torch.cat([mu, sigma.log()], 1))
    return free


# Refinement


def test_refine_finds_the_optimum():
    """The mean of independent fits lies within their own standard errors of the closed form."""
    vae, x, R = linear_vae(), data(), 6
    mu, sigma = optimum(vae, x)
    fits = [refine(vae, x, steps=500, lr=0.1, V=30, generator=noise(seed)) for seed in range(R)]
    phi = torch.stack([fit.phi.weight.detach() for fit in fits])  # [R, n, 2d]
    best = torch.cat([mu, sigma.log()], 1)
    error = (phi - best).mean(0) / (phi.std(0) / R**0.5)
    # the error of one number has Student's distribution of 5 degrees; 17.4 is exceeded once in 10^5
    assert error.abs().max() < 17.4
    # so it does in the mean over all: 20 * 6 numbers
    assert (error.clamp(-4, 4).mean().abs() < 4 * error.clamp(-4, 4).std() / error.numel() ** 0.5).item()
    # no q of the family is better, and what is lost is the noise's: of second order
    losses = torch.stack([exact_elbo(vae, x, table(mu, sigma)) - exact_elbo(vae, x, fit) for fit in fits])
    M = vae.decoder.f.weight.T @ vae.decoder.f.weight / S2 + torch.eye(d)
    delta = phi - best
    second = 0.5 * ((delta[..., :d] @ M.detach()) * delta[..., :d]).sum(-1) + (delta[..., d:] ** 2).sum(-1)
    assert (losses > 0).all()
    torch.testing.assert_close(losses, second, rtol=5 * delta.abs().max().item(), atol=1e-10)


def test_an_encoder_is_never_better_than_free_phi():
    """(7-8): at the same Theta, for each datum."""
    vae, x = linear_vae(), data()
    mu, sigma = optimum(vae, x)
    refined = refine(vae, x, steps=300, lr=0.1, V=10, generator=noise())
    amortised, fit, best = (exact_elbo(vae, x, e) for e in (None, refined, table(mu, sigma)))
    assert (amortised < fit).all() and (fit < best).all()


def test_refine_leaves_the_model_alone():
    vae, x = linear_vae(), data()
    vae.decoder.eval()
    before, state = {k: v.clone() for k, v in vae.state_dict().items()}, torch.get_rng_state()
    refine(vae, x, steps=3, lr=0.1, generator=noise())
    assert all(torch.equal(v, before[k]) for k, v in vae.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in vae.parameters())
    assert vae.training and vae.encoder.training and not vae.decoder.training
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_refine_works_in_every_mode(mode):
    vae, x, expected = linear_vae(), data(), refine(linear_vae(), data(), 5, 0.1, generator=noise())
    with mode():
        free = refine(vae, x + 0, 5, 0.1, generator=noise())
    assert torch.equal(free.phi.weight, expected.phi.weight)
    assert not free.phi.weight.is_inference()


def test_refine_in_chunks(monkeypatch):
    vae, x = linear_vae(), data(7)
    module = sys.modules[refine.__module__]
    monkeypatch.setattr(module, "CHUNK", 6)  # three data of two samples at a time
    free = refine(vae, x, steps=300, lr=0.1, V=2, generator=noise())
    assert free.n == 7
    lost = exact_elbo(vae, x, table(*optimum(vae, x))) - exact_elbo(vae, x, free)
    swapped = exact_elbo(vae, x.roll(1, 0), free)  # each datum has its own
    assert lost.max() < 0.1 < (exact_elbo(vae, x, free) - swapped).min()


def test_where_refinement_starts():
    x = data()
    batch = Batch(x, torch.arange(len(x)))
    vae = linear_vae()
    q = fitted_q(vae, x)
    torch.testing.assert_close(q.mu, vae.encoder(batch).mu, rtol=0, atol=1e-6)
    torch.testing.assert_close(q.sigma, vae.encoder(batch).sigma, rtol=0, atol=1e-6)
    full = encoders.MLP([D], d, [4], "relu", posteriors.Full(d))
    for encoder in (full, encoders.Free([D], d, 5, lr=0.1, steps=1)):
        q = fitted_q(linear_vae(encoder), x)
        torch.testing.assert_close(q.mu, torch.zeros_like(q.mu), rtol=0, atol=1e-6)
        torch.testing.assert_close(q.sigma, torch.ones_like(q.mu), rtol=0, atol=1e-6)


def fitted_q(vae, x):
    return refine(vae, x, steps=1, lr=1e-8, generator=noise())(Batch(x, torch.arange(len(x))))


def test_with_encoder_keeps_the_prior():
    """Also one that is made from the encoder."""
    vae = linear_vae(prior=priors.Vamp(d, [D], 4))
    other = with_encoder(vae, encoders.Free([D], d, 2, lr=0.1, steps=1).double())
    z = torch.randn(5, d, dtype=torch.float64, generator=noise())
    assert torch.equal(other.p_z().log_prob(z), vae.p_z().log_prob(z))
    assert other.decoder is vae.decoder and other.likelihood is vae.likelihood


def test_fitted_asks_an_encoder_itself():
    vae, batch = linear_vae(), Batch(data(), torch.arange(20))
    assert fitted(vae, batch) == (vae, batch)


@pytest.mark.parametrize(("argument", "value"), [("steps", 0), ("lr", 0.0), ("V", 0)])
def test_refine_refuses(argument, value):
    with pytest.raises(ValueError, match=f"^{argument} must be"):
        refine(linear_vae(), data(), **{"steps": 1, "lr": 0.1, argument: value})


# Training


class Tiny(Source):
    """Random vectors: 53 to train on, 31 to validate, 17 to test."""

    shape, levels = (D,), None

    def load(self):
        return Splits(*(Pixels(x) for x in torch.rand(101, D, generator=noise(1)).split([53, 31, 17])))


def free_vae(seed=0, log_sigma=0.0):
    torch.manual_seed(seed)
    encoder = encoders.Free([D], 2, 53, lr=0.1, steps=5)
    with torch.no_grad():
        encoder.phi.weight[:, 2:] = log_sigma
    parts = decoders.MLP([D], 2, [5], "tanh"), likelihoods.Gaussian([D], 0.5), priors.StandardNormal(2)
    return VAE(encoder, *parts)


def adam(parameters):
    return Adam(parameters, 1e-2)


def fit(vae, sampling=Shuffled, epochs=2, optimizer=adam, clip=None, resume=None, **arguments):
    module = InMemory(Tiny(), Raw(), sampling(8, 10, 3), seed=0)
    lit = LitVAE(vae, Elbo(2), optimizer, schedules.Cosine(warmup=0.0, final=0.1), seed=0, clip=clip)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"enable_checkpointing": False} | arguments,
    )
    trainer.fit(lit, datamodule=module, ckpt_path=resume)
    return trainer, lit, module


def same(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


@pytest.mark.parametrize("sampling", [Shuffled, WithReplacement])
def test_steps_are_those_of_a_plain_loop(sampling):
    """Adam on what the data share, with its schedule; SparseAdam on phi, at its own rate."""
    _, lit, module = fit(free_vae(), sampling)
    vae, objective = free_vae(), Elbo(2)
    theta = adam([*vae.decoder.parameters()])
    schedule, phi = schedules.Cosine(warmup=0.0, final=0.1)(theta, 14), SparseAdam(vae.encoder.parameters(), 0.1)
    stream, feed = generator("cpu", 0, "noise"), module.train_feed()
    for epoch in range(2):
        feed.sampler.set_epoch(epoch)
        for batch in feed:
            loss = objective(vae, batch, torch.randn(2, len(batch.x), 2, generator=stream)).loss.mean()
            theta.zero_grad(), phi.zero_grad()
            loss.backward()
            theta.step(), phi.step(), schedule.step()
    for k, v in vae.state_dict().items():
        torch.testing.assert_close(lit.vae.state_dict()[k], v, rtol=1e-5, atol=1e-6)


def test_only_the_data_that_were_drawn_move():
    trainer, lit, module = fit(free_vae(), WithReplacement, epochs=1)
    drawn = torch.cat([batch.index for batch in module.train_feed()]).unique()
    moved = (lit.vae.encoder.phi.weight != free_vae().encoder.phi.weight).any(1).nonzero().flatten()
    assert torch.equal(moved, drawn) and 20 < len(drawn) < 53
    assert trainer.global_step == 7  # of two optimisers each


class Watcher(pl.Callback):
    """Looks inside each step."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        assert all(p.grad is not None for p in pl_module.parameters())


def test_a_callback_that_looks_inside_a_step_changes_nothing():
    plain, watched = fit(free_vae()), fit(free_vae(), callbacks=[Watcher()])
    assert plain[1].needs_lightning is None and watched[1].needs_lightning is not None
    assert same(plain[1].vae, watched[1].vae)
    assert plain[0].global_step == watched[0].global_step == 14


def test_clipping_is_for_what_the_data_share():
    _, lit, _ = fit(free_vae(), clip=1e-6, optimizer=lambda parameters: SGD(parameters, 1.0), epochs=1)
    moved = [(a - b).norm() for a, b in zip(lit.vae.decoder.parameters(), free_vae().decoder.parameters(), strict=True)]
    assert 0 < torch.stack(moved).norm() <= 7 * 1e-6 * 1.01
    assert (lit.vae.encoder.phi.weight - free_vae().encoder.phi.weight).abs().max() > 0.05


def test_a_resumed_run_is_the_same_run(tmp_path):
    """With q so narrow that the noise moves nothing: both optimisers go on where they were."""
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer, whole, _ = fit(free_vae(log_sigma=-30.0), epochs=4, enable_checkpointing=True, callbacks=[keep])
    resumed, lit, _ = fit(free_vae(seed=1), epochs=4, resume=tmp_path / "epoch=1.ckpt")
    assert trainer.global_step == resumed.global_step == 28
    assert same(whole.vae, lit.vae) and not same(whole.vae, free_vae(log_sigma=-30.0))


def test_new_data_are_refined_before_they_are_scored():
    trainer, lit, module = fit(free_vae(), epochs=1)
    vae, stream, elbos = lit.vae, generator("cpu", 0, "val"), []
    for batch in module.feed("val"):
        scored, known = fitted(vae, batch, stream)
        elbos.append(Elbo(2)(scored, known, torch.randn(2, len(batch.x), 2, generator=stream)).elbo)
    expected = torch.cat(elbos).mean().item()
    assert trainer.callback_metrics["val/elbo"] == pytest.approx(expected, rel=1e-5)
    [again] = trainer.validate(lit, datamodule=module, verbose=False)
    assert again["val/elbo"] == trainer.callback_metrics["val/elbo"]


# The drawbacks


def test_a_share_1_over_e_is_left_untouched():
    n = 4000
    share = untouched(n, WithReplacement(100, 100, 1), noise())
    p, both = (1 - 1 / n) ** n, (1 - 2 / n) ** n
    # of n boxes, the empty ones after n balls
    variance = (p + (n - 1) * both) / n - p**2
    assert p == pytest.approx(math.exp(-1), abs=1e-4)
    assert abs(share - p) < 5 * variance**0.5
    assert untouched(n, Shuffled(100, 100, 1), noise()) == 0


def test_times_are_of_an_encoder():
    refit, forward = refit_time(linear_vae(), data(), steps=2, repeats=1)
    assert refit > 0 and forward > 0
    with pytest.raises(ValueError, match=r"^encoder must be amortised .*Free"):
        refit_time(free_vae(), data().float(), steps=2)


def test_the_story_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(oracle_free_phi, "EPOCHS", 1)
    monkeypatch.setattr(oracle_free_phi, "STEPS", 100)
    data_node, likelihood = hints.read("data/digits"), hints.read("likelihood/gaussian")
    cfg = {"data": data_node, "d": 2, "likelihood": likelihood | {"shape": data_node["shape"]}, "seed": 0}
    oracle_free_phi.run(OmegaConf.create(cfg | {"paths": {"run": str(tmp_path)}}))
    found = json.loads((tmp_path / oracle_free_phi.RESULT).read_text())
    assert found["untouched_Shuffled"] == 0 and 0.3 < found["untouched_WithReplacement"] < 0.45
    assert found["gap"] > 0 and "untouched" in capsys.readouterr().out


# As a user trains it


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


QUICK = ["trainer.max_epochs=1", "logger=none", "encoder.steps=3"]


def test_a_run(elsewhere, capsys):
    main(["train", "encoder=free", *QUICK])
    [run] = [path.parent for path in Path("outputs").glob("*/config.yaml")]
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["encoder"]["n"] == 1257
    assert (run / "pictures" / "latent_scatter.png").exists()
    vae = vae_lab.load(run)
    assert vae.encoder.n == 1257 and not vae.encoder.amortised
    metrics = json.loads((run / "metrics.json").read_text())
    main(["evaluate", f"run={run}"])
    assert f"{metrics['test/elbo']:.3f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("encoder.n=5", "encoder.n must be 1257, the number of training data, or null, got 5"),
        ("encoder.lr=0", "encoder.lr must be a finite number > 0, got 0"),
        ("encoder.steps=0", "encoder.steps must be a whole number >= 1, got 0"),
        ("prior=vamp", "encoder must compute q(z | x) from x alone for the vamp prior, got Free"),
    ],
)
def test_mistakes(elsewhere, capsys, words, message):
    with pytest.raises(SystemExit):
        main(["train", "encoder=free", *QUICK[:2], *words.split()])
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not Path("outputs").exists() or not any(Path("outputs").iterdir())


@pytest.mark.slow
def test_two_processes_give_what_one_gives(elsewhere):
    script = str(ROOT / "scripts" / "train.py")
    shared = ["encoder=free", *QUICK, "callbacks=[checkpoint]", "trainer.accelerator=cpu", "sampling.batch_size=90"]
    for devices, strategy in ((1, "auto"), (2, "ddp")):
        words = [*shared, f"trainer.devices={devices}", f"trainer.strategy={strategy}", f"paths.run=run{devices}"]
        done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    states = [torch.load(f"run{k}/checkpoints/last.ckpt", weights_only=True) for k in (1, 2)]
    one, two = (state["state_dict"] for state in states)
    assert states[0]["global_step"] == states[1]["global_step"] == 14
    assert max((v - two[k]).abs().max() for k, v in one.items()) < 1e-4
    a, b = (json.loads(Path(f"run{k}/metrics.json").read_text()) for k in (1, 2))
    for name in ("train/elbo", "val/elbo", "val/active_units", "test/elbo", "test/elbo_se"):
        assert a[name] == pytest.approx(b[name], rel=1e-4), name
