import math

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision

from vae_lab import decoders, encoders, likelihoods, priors, schedules
from vae_lab.callbacks.history import History
from vae_lab.data.module import InMemory
from vae_lab.data.preprocessing import Raw
from vae_lab.data.sampling import Shuffled
from vae_lab.data.sources import Pixels, Source, Splits
from vae_lab.interfaces import Batch, Terms
from vae_lab.lit import ACTIVE, LitVAE
from vae_lab.metrics import Moments
from vae_lab.objectives import Elbo
from vae_lab.runs.files import rows
from vae_lab.seeds import generator
from vae_lab.vae import VAE


class Tiny(Source):
    """Random images: 53 to train on, 31 to validate, 17 to test, so that no batch size divides them."""

    shape, levels = (1, 4, 3), None

    def __init__(self):
        self.pixels = torch.rand(101, *self.shape, generator=torch.Generator().manual_seed(1))

    def load(self):
        return Splits(*(Pixels(x) for x in self.pixels.split([53, 31, 17])))


def make_vae(d=2, likelihood=None):
    torch.manual_seed(0)
    S = Tiny.shape
    likelihood = likelihood or likelihoods.Gaussian(S, 0.5)
    return VAE(encoders.Linear(S, d), decoders.MLP(S, d, [5], "tanh"), likelihood, priors.StandardNormal(d))


def adam(params):
    return torch.optim.Adam(params, 1e-2, fused=True)


def fit(
    vae,
    batch_size=8,
    eval_batch_size=10,
    block=3,
    epochs=2,
    optimizer=adam,
    V=1,
    clip=None,
    schedule=None,
    engine=None,
    log_every=50,
    **kw,
):
    data = InMemory(Tiny(), Raw(), Shuffled(batch_size, eval_batch_size, block), seed=0)
    schedule = schedule or schedules.Constant()
    lit = LitVAE(vae, Elbo(V), optimizer, schedule, seed=0, clip=clip, engine=engine, log_every=log_every)
    trainer = pl.Trainer(
        max_epochs=epochs,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **{"logger": False, "accelerator": "cpu", **kw},
    )
    trainer.fit(lit, datamodule=data)
    return trainer, lit, data


def sharp(vae):
    """The same model with a posterior so narrow that the noise moves no result."""
    with torch.no_grad():
        vae.encoder.log_sigma.fill_(-30.0)
    return vae


def frozen(params):
    return torch.optim.SGD(params, lr=0.0)


@pytest.mark.parametrize("room", [1, 300])  # a batch, and two
def test_noise_is_drawn_in_as_many_parts_as_it_takes(room, monkeypatch):
    one, _, _ = fit(make_vae(), V=2, log_every=2)
    monkeypatch.setattr("vae_lab.lit.ROOM", room)
    other, _, _ = fit(make_vae(), V=2, log_every=2)
    assert one.global_step == other.global_step == 14
    for name, v in one.callback_metrics.items():
        assert name == "train/images_per_second" or torch.equal(v, other.callback_metrics[name])
    for p, q in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_epoch_values_are_means_over_data_whatever_the_batch_size(size):
    vae = sharp(make_vae())
    trainer, lit, data = fit(vae, batch_size=size, eval_batch_size=size, optimizer=frozen, epochs=1)
    pixels = Tiny().pixels
    for split, x in zip(("train", "val"), pixels.split([53, 31, 17]), strict=False):
        exact = Elbo(1)(vae, Batch(x, torch.arange(len(x))), torch.zeros(1, len(x), 2))
        for name in ("elbo", "rec", "kl"):
            assert trainer.callback_metrics[f"{split}/{name}"] == pytest.approx(
                getattr(exact, name).mean().item(), 1e-6
            )
    [scores] = trainer.test(lit, datamodule=data, verbose=False)
    exact = Elbo(1)(vae, Batch(pixels[84:], torch.arange(17)), torch.zeros(1, 17, 2)).elbo
    assert scores["test/elbo"] == pytest.approx(exact.mean().item(), 1e-6)
    assert scores["test/elbo_se"] == pytest.approx(exact.std(correction=0).item() / math.sqrt(17), 1e-5)


def test_kl_per_dimension_and_active_units():
    vae = make_vae(d=3)
    with torch.no_grad():
        vae.encoder.mu.weight[1] = 0.0  # its mean does not depend on x: inactive
        vae.encoder.mu.weight[[0, 2]] *= 5
    trainer, _, _ = fit(vae, optimizer=frozen, epochs=1)
    q = vae.encoder(Batch(Tiny().pixels[53:84], torch.arange(31)))
    kl = 0.5 * (q.mean**2 + q.variance - 1 - q.variance.log()).mean(0)
    for j in range(3):
        assert trainer.callback_metrics[f"val/kl_dim/{j}"] == pytest.approx(kl[j].item(), 1e-5, abs=1e-7)
    A = q.mean.var(0, correction=0)
    assert A[1] < ACTIVE < A[0] and A[2] > ACTIVE
    assert trainer.callback_metrics["val/active_units"] == 2
    assert trainer.callback_metrics["val/kl"] == pytest.approx(kl.sum().item(), 1e-5)


@pytest.mark.parametrize(
    "batch_size", [8, 16]
)  # all of a block's noise is drawn at once where that is a multiple of 16
def test_neither_results_nor_what_is_logged_depend_on_the_block(tmp_path, batch_size):
    weights, logged = [], []
    for block in (1, 3, 100):
        history = History(tmp_path / f"{block}.jsonl")
        lit = fit(make_vae(), batch_size, block=block, log_every=2, logger=history)[1]
        weights.append(lit.state_dict())
        logged.append([row for row in rows(history.path) if "train/images_per_second" not in row])
    for other in weights[1:]:
        assert all(torch.equal(weights[0][k], other[k]) for k in other)
    assert logged[1:] == logged[:1] * 2
    steps = [row for row in logged[0] if "train/grad_norm" in row]
    assert [row["step"] for row in steps] == [*range(2, lit.global_step + 1, 2)]
    assert all({f"train/{name}_step" for name in Terms._fields} < row.keys() for row in steps)


def test_a_block_stops_at_max_steps():
    trainer, lit, _ = fit(make_vae(), block=10, max_steps=5)
    assert trainer.global_step == 5 and lit.steps() == 5
    same = fit(make_vae(), block=1, max_steps=5)[1].state_dict()
    assert all(torch.equal(v, same[k]) for k, v in lit.state_dict().items())


def test_steps_are_those_of_a_plain_loop():
    """What Lightning drives is Adam on the mean loss of each batch, with noise from the run's own stream."""
    _, lit, data = fit(make_vae(), epochs=2, V=2)
    vae, objective = make_vae(), Elbo(2)
    optimizer = adam(vae.parameters())
    noise, feed = generator("cpu", 0, "noise"), data.train_feed()
    for epoch in range(2):
        feed.sampler.set_epoch(epoch)
        for batch in feed:
            loss = objective(vae, batch, torch.randn(2, len(batch.x), 2, generator=noise)).loss.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for k, v in vae.state_dict().items():
        torch.testing.assert_close(lit.vae.state_dict()[k], v, rtol=1e-5, atol=1e-7)


class Watcher(pl.Callback):
    """Looks inside each step."""

    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        assert all(p.grad is not None for p in pl_module.parameters())
        self.seen.append(trainer.global_step)


def test_a_callback_that_looks_inside_a_step_changes_nothing():
    watcher = Watcher()
    plain, watched = fit(make_vae()), fit(make_vae(), callbacks=[watcher])
    assert plain[1].needs_lightning is None and "Watcher" in watched[1].needs_lightning
    assert watcher.seen == list(range(14)) and plain[0].global_step == watched[0].global_step == 14
    same = watched[1].state_dict()
    assert all(torch.equal(v, same[k]) for k, v in plain[1].state_dict().items())


def test_mixed_precision_clips_too():
    fit(make_vae(), clip=1.0, precision="bf16-mixed", epochs=1)  # by a fused optimiser


def test_a_scaled_gradients_norm_is_that_of_the_gradient():
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))
    norms = []
    for more in {}, {"plugins": [scaled]}:
        trainer, _, _ = fit(make_vae(), optimizer=lambda p: torch.optim.SGD(p, 1e-3), epochs=1, log_every=1, **more)
        norms.append(trainer.callback_metrics["train/grad_norm"].item())
    assert norms[1] == pytest.approx(norms[0], rel=0.02)


def test_what_is_tried_before_training_is_not_told(tmp_path):
    fit(make_vae(), epochs=1, num_sanity_val_steps=1, logger=History(tmp_path / "rows"))
    assert all(row["step"] for row in rows(tmp_path / "rows"))


def test_clipping_and_schedule():
    lit = fit(make_vae(), clip=1e-6, optimizer=lambda p: torch.optim.SGD(p, 1.0), epochs=1)[1]
    moved = torch.cat([(a - b).flatten() for a, b in zip(lit.vae.parameters(), make_vae().parameters(), strict=True)])
    assert 0 < moved.norm() <= 7 * 1e-6 * 1.01  # seven steps, none longer than the clip
    trainer, lit, _ = fit(make_vae(), schedule=schedules.Cosine(warmup=0.0, final=0.1))
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3)


def test_cosine():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule, lrs = schedules.Cosine(warmup=0.5, final=0.0)(optimizer, 8), []
    for _ in range(8):
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert lrs[:4] == pytest.approx([2 * (i + 1) / 5 for i in range(4)])
    assert lrs[4:] == pytest.approx([1 + math.cos(math.pi * i / 4) for i in range(4)])
    for wrong in ({"warmup": 1, "final": 0}, {"warmup": 0, "final": -1}):
        with pytest.raises(ValueError, match=r"^(warmup|final) must be"):
            schedules.Cosine(**wrong)


class Breaking(torch.optim.SGD):
    """Spoils a weight after its third step."""

    def step(self, closure=None):
        super().step(closure)
        self.taken = getattr(self, "taken", 0) + 1
        if self.taken == 3:
            with torch.no_grad():
                self.param_groups[0]["params"][-1].fill_(math.nan)


@pytest.mark.parametrize("block", [1, 2, 50])
def test_a_loss_that_is_not_finite_names_the_step_and_the_term(block):
    with pytest.raises(FloatingPointError, match=r"^rec not finite at step 4 \(epoch 0\)$"):
        fit(make_vae(), block=block, optimizer=lambda p: Breaking(p, 1e-3))


def test_a_broken_evaluation_is_found_too():
    class Late(Breaking):
        def step(self, closure=None):
            torch.optim.SGD.step(self, closure)
            self.taken = getattr(self, "taken", 0) + 1
            if self.taken == 7:  # the last step of the epoch: no training loss shows it
                with torch.no_grad():
                    self.param_groups[0]["params"][0].fill_(math.inf)

    with pytest.raises(FloatingPointError, match="the val evaluation after step 7"):
        fit(make_vae(), optimizer=lambda p: Late(p, 1e-3))


def test_double_precision():
    trainer, lit, _ = fit(make_vae(), precision="64-true")
    assert {p.dtype for p in lit.parameters()} == {torch.float64}
    assert math.isfinite(trainer.callback_metrics["train/elbo"])


def test_moments_match_torch_and_take_empty_batches():
    values, moments = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)), Moments(3)
    for part in (values[:, :1], values[:, 1:1], values[:, 1:]):
        moments.update(part)
    statistics = moments.compute()
    torch.testing.assert_close(statistics.mean, values.double().mean(1))
    torch.testing.assert_close(statistics.variance, values.double().var(1, correction=0))
    torch.testing.assert_close(statistics.error, values.double().std(1, correction=0) / math.sqrt(50))
