"""Small models, in float64, for which the answers are known; and how their gradients are sampled."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from vae_lab import decoders, encoders, likelihoods, priors
from vae_lab.distributions import FullNormal
from vae_lab.interfaces import Batch, Decoder, Encoder, Likelihood
from vae_lab.objectives import Objective
from vae_lab.oracles import LinearGaussian
from vae_lab.seeds import generator
from vae_lab.vae import VAE


def noise(*shape: int, key: str = "noise") -> Tensor:
    """eps ~ N(0, I), always the same for a key and a shape."""
    return torch.randn(*shape, generator=stream(key), dtype=torch.float64)


def stream(key: str) -> torch.Generator:
    """A generator at the beginning of a stream of its own."""
    return generator("cpu", "proofs", key)


def batch_of(x: Float[Tensor, "B *shape"]) -> Batch:
    """Data with their places."""
    return Batch(x, torch.arange(len(x)))


def sigma_points(d: int, n: int) -> Float[Tensor, "V n d"]:
    """V = 2d noises +-sqrt(d) e_j for n data: they average any polynomial of second degree as N(0, I) does."""
    points = d**0.5 * torch.eye(d, dtype=torch.float64)
    return torch.cat([points, -points])[:, None].expand(-1, n, -1)


def gaussian(shape: tuple[int, ...], s2: float) -> Likelihood:
    """N(x | eta, s2 I), s2 in float64: float32 has 0.1 only nearly."""
    p = likelihoods.Gaussian(shape, s2).double()
    p.s2 = torch.tensor(s2, dtype=torch.float64)
    return p


def linear(model: LinearGaussian, encoder: Encoder | None = None) -> VAE:
    """The linear-Gaussian model as a VAE; by default with a linear encoder."""
    D, d = model.W.shape
    f = decoders.Linear([D], d)
    encoder = encoders.Linear([D], d) if encoder is None else encoder
    vae = VAE(encoder, f, gaussian((D,), model.s2), priors.StandardNormal(d)).double()
    with torch.no_grad():
        f.f.weight.copy_(model.W), f.f.bias.copy_(model.b)
    return vae


def example(
    D: int = 4, d: int = 2, s2: float = 0.3, key: str = "example"
) -> tuple[LinearGaussian, Float[Tensor, "n D"]]:
    """A linear-Gaussian model whose columns of W are not orthogonal, and five data drawn from it."""
    model = LinearGaussian(noise(D, d, key=f"{key} W") / d**0.5, noise(D, key=f"{key} b"), s2)
    x = noise(5, d, key=f"{key} z") @ model.W.T + model.b + s2**0.5 * noise(5, D, key=f"{key} x")
    return model, x


def free(mu: Float[Tensor, "n d"], sigma: Float[Tensor, "n d"], shape: tuple[int, ...]) -> encoders.Free:
    """q_i = N(mu_i, sigma_i^2): (6)."""
    encoder = encoders.Free(shape, mu.shape[1], len(mu), lr=0.1, steps=1).double()
    with torch.no_grad():
        encoder.phi.weight.copy_(torch.cat([mu, sigma.log()], -1))
    return encoder


def amortised(A: Float[Tensor, "d D"], a: Float[Tensor, " d"], sigma: Float[Tensor, " d"]) -> encoders.Linear:
    """q(z | x) = N(A x + a, sigma^2): (7)."""
    d, D = A.shape
    encoder = encoders.Linear([D], d).double()
    with torch.no_grad():
        encoder.mu.weight.copy_(A), encoder.mu.bias.copy_(a), encoder.log_sigma.copy_(sigma.log())
    return encoder


def mlp(D: int, d: int, s2: float = 0.1, likelihood: Likelihood | None = None) -> VAE:
    """A model that is not linear, with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = encoders.MLP([D], d, [8], "tanh"), decoders.MLP([D], d, [8], "tanh")
    return VAE(*parts, likelihood or gaussian((D,), s2), priors.StandardNormal(d)).double()


@final
class Given(Encoder):
    """q_i = N(mu_i, L L^T), with a covariance of any kind.

    Args:
        shape: of one datum
        mu: [n, d]
        L: lower triangular: [d, d]
    """

    def __init__(self, shape: tuple[int, ...], mu: Float[Tensor, "n d"], L: Float[Tensor, "d d"]) -> None:
        super().__init__()
        self.shape, self.d = shape, len(L)
        self.mu, self.L = nn.Parameter(mu), nn.Parameter(L)

    def forward(self, batch: Batch) -> FullNormal:
        mu = self.mu[batch.index]
        return FullNormal(mu, self.L.expand(len(mu), -1, -1))


@final
class Curve(Decoder):
    """f(z) = (sin 2z, z^2 / 2, tanh z): one latent dimension, bent into three."""

    def __init__(self) -> None:
        super().__init__()
        self.d, self.shape = 1, (3,)

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        return torch.cat([torch.sin(2 * z), z**2 / 2, torch.tanh(z)], -1)


@final
class Sheet(Decoder):
    """f(z) = (sin(z1 + z2), z1 z2 / 2, tanh z1, cos z2): two latent dimensions, bent into four."""

    def __init__(self) -> None:
        super().__init__()
        self.d, self.shape = 2, (4,)

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        z1, z2 = z[..., 0], z[..., 1]
        return torch.stack([torch.sin(z1 + z2), z1 * z2 / 2, torch.tanh(z1), torch.cos(z2)], -1)


def bent(f: Decoder, mu: list[list[float]], sigma: list[list[float]]) -> VAE:
    """p(x | z) = N(x | f(z), 0.1 I), and q_i as given."""
    q = free(torch.tensor(mu, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64), f.shape)
    return VAE(q, f, gaussian(f.shape, 0.1), priors.StandardNormal(f.d)).double()


# --- gradients


def phi_gradients(
    vae: VAE, objective: Objective, batch: Batch, eps: Float[Tensor, "V B d"]
) -> Float[Tensor, "B two_d"]:
    """The gradient that is climbed, in (mu_i, log sigma_i), of each datum; the encoder is Free. Where all data are one
    datum these are B draws of its gradient."""
    assert isinstance(vae.encoder, encoders.Free)
    [gradient] = torch.autograd.grad(objective(vae, batch, eps).loss.sum(), [vae.encoder.phi.weight])
    return -gradient.to_dense()


class Scored(nn.Module):
    """A model with its objective: (batch, noise) -> the sum of what is climbed, over the batch."""

    def __init__(self, vae: VAE, objective: Objective) -> None:
        super().__init__()
        self.vae, self.objective = vae, objective

    def forward(self, x: Tensor, eps: Tensor) -> Tensor:
        return -self.objective(self.vae, batch_of(x), eps).loss.sum()


def parameter_gradients(
    vae: VAE, objective: Objective, x: Float[Tensor, "R B *shape"], eps: Float[Tensor, "R V B d"]
) -> dict[str, Tensor]:
    """The gradient in each parameter of R batches, each with its noise: [R, ...]."""
    scored = Scored(vae, objective)
    parameters = {name: value.detach() for name, value in scored.named_parameters()}

    def climbed(parameters: dict[str, Tensor], x: Tensor, eps: Tensor) -> Tensor:
        return functional_call(scored, parameters, (x, eps))

    found = vmap(grad(climbed), (None, 0, 0))(parameters, x, eps)
    return {name.removeprefix("vae."): value for name, value in found.items()}


def gradient(vae: VAE, objective: Objective, x: Float[Tensor, "B *shape"], eps: Float[Tensor, "V B d"]) -> Tensor:
    """The gradient in all parameters of one batch, as one vector."""
    loss = objective(vae, batch_of(x), eps).loss.sum()
    return -torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(vae.parameters()))])


# --- statistics


def mean_and_error(values: Float[Tensor, "R *rest"]) -> tuple[Tensor, Tensor]:
    """The mean of R draws and its standard error."""
    return values.mean(0), values.std(0) / len(values) ** 0.5


def variance_and_error(values: Float[Tensor, "R *rest"]) -> tuple[Tensor, Tensor]:
    """The variance of R draws and its standard error, from their fourth moment."""
    squares = (values - values.mean(0)) ** 2
    return squares.mean(0), (squares.var(0) / len(values)).sqrt()
