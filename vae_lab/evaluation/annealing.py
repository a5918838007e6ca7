"""log p(x) by annealed importance sampling (Neal 2001; for decoders: Wu et al. 2017), and how far off that is."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import Distribution

from vae_lab.checks import whole
from vae_lab.densities import Product
from vae_lab.distributions import IsotropicNormal, ProductBernoulli, reparameterise
from vae_lab.evaluation.chunks import GROUP, MEMORY, Progress, randn, rows_within, some
from vae_lab.evaluation.estimators import Estimate, LogMeanExp, require_density
from vae_lab.interfaces import Batch
from vae_lab.vae import VAE

ACCEPTED = 0.65
"""The share of proposals that Hamiltonian Monte Carlo should accept (Neal 2011, section 5.4.4.3)."""

FIRST, GAIN = 0.5, 0.2
"""The first step size, and how fast its logarithm follows the acceptance."""


class Bracket(NamedTuple):
    """Two estimates of log p(x) for each simulated datum: the one low on average, the other high."""

    lower: Estimate
    upper: Estimate


class Point(NamedTuple):
    """z [C, b, d] of C chains for each of b data, with log p(z), log p(x | z) and their gradients."""

    z: Float[Tensor, "C b d"]
    log_prior: Float[Tensor, "C b"]
    log_lik: Float[Tensor, "C b"]
    grad_prior: Float[Tensor, "C b d"]
    grad_lik: Float[Tensor, "C b d"]


Target = Callable[[Tensor], Point]


def ais(
    vae: VAE,
    batch: Batch,
    temperatures: int,
    chains: int,
    generator: torch.Generator | None = None,
    leapfrog: int = 10,
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> Estimate:
    """Annealed importance sampling from p(z) to p(z | x) through p(z) p(x | z)^beta, by Hamiltonian Monte Carlo.

    Each datum has step sizes of its own, one for each temperature. They are found in a preliminary run of a quarter of
    the chains, which is then thrown away, so that no chain's transitions depend on its own past and the mean weight is
    p(x) itself.

    Args:
        temperatures: from beta = 0 to 1, along a sigmoid (Wu et al. 2017)
        chains: for each datum
        leapfrog: steps of each transition
        memory: the most bytes that may be used at a time; it does not change the result
    Raises:
        ValueError: if the prior has no density.
    """
    require_density("prior", vae.p_z(), batch)
    betas, rows = schedule(temperatures, batch), annealing_rows(vae, batch, memory)
    weights = LogMeanExp(batch.x, len(batch.x))
    for where in _groups(batch):
        data = some(batch, where)
        log_w, _ = _forward(vae, data, betas, chains, leapfrog, rows, generator)
        weights.add(where, log_w)
        if progress is not None:
            progress(where.stop, len(batch.x))
    return weights.estimate()


def bdmc(
    vae: VAE,
    n: int,
    temperatures: int,
    chains: int,
    generator: torch.Generator | None = None,
    leapfrog: int = 10,
    memory: int = MEMORY,
    label: Int[Tensor, " n"] | None = None,
    progress: Progress | None = None,
) -> Bracket:
    """Bidirectional Monte Carlo on n data that the model itself makes, so that one posterior sample is known exactly
    (Grosse et al. 2015): AIS forwards, and backwards from that sample.

    The expectation of `lower` is at most log p(x), that of `upper` at least; the smaller their difference, the more
    `ais` can be trusted with these settings.

    Args:
        label: of the data to be made, for a conditional model
        (the others): as for `ais`
    Raises:
        ValueError: if the prior has no density, or the likelihood cannot be sampled.
    """
    batch, z = simulate(vae, n, generator, label)
    require_density("prior", vae.p_z(), batch)
    betas, rows = schedule(temperatures, batch), annealing_rows(vae, batch, memory)
    lower, upper = LogMeanExp(batch.x, n), LogMeanExp(batch.x, n)
    for where in _groups(batch):
        data = some(batch, where)
        log_w, steps = _forward(vae, data, betas, chains, leapfrog, rows, generator)
        lower.add(where, log_w)
        exact = z[where].expand(chains, -1, -1)  # every chain begins with the one sample that is known
        target = _target(vae, data, rows)
        log_w, _ = anneal(target, exact, betas.flip(0), steps.flip(0), leapfrog, generator)
        upper.add(where, log_w)
        if progress is not None:
            progress(where.stop, n)
    # E exp(log_w) = 1 / p(x) backwards
    above = upper.estimate()
    return Bracket(lower.estimate(), above._replace(log_p=-above.log_p))


def schedule(temperatures: int, batch: Batch, delta: float = 4.0) -> Float[Tensor, " T_1"]:
    """beta_0 = 0, ..., beta_T = 1, close together at both ends: the sigmoid over [-delta, delta], rescaled."""
    t = torch.linspace(-delta, delta, whole("temperatures", temperatures) + 1, dtype=torch.float64).sigmoid()
    return ((t - t[0]) / (t[-1] - t[0])).to(batch.x)


@torch.no_grad()
def simulate(
    vae: VAE, n: int, generator: torch.Generator | None = None, label: Int[Tensor, " n"] | None = None
) -> tuple[Batch, Float[Tensor, "n d"]]:
    """n data of the model, and the z that they were made from: z ~ p(z), x ~ p(x | z)."""
    like = next(vae.decoder.parameters(), torch.zeros(()))
    eps = torch.randn(whole("n", n), vae.d, generator=generator, device=like.device, dtype=like.dtype)
    z = reparameterise(vae.p_z(), eps)
    x = draw(vae.p_x(z, label), generator)
    return Batch(x.to(z.dtype), torch.arange(n, device=z.device), label), z


def draw(p: Distribution, generator: torch.Generator | None) -> Tensor:
    """x ~ p; raises ValueError where p cannot be sampled."""
    if isinstance(p, IsotropicNormal):
        eps = torch.randn(p.mean.shape, generator=generator, device=p.mean.device, dtype=p.mean.dtype)
        return p.mean + p.s2.sqrt() * eps
    if isinstance(p, ProductBernoulli):
        return torch.bernoulli(p.mean, generator=generator)
    # torch's own sample from the global generator
    seed = torch.randint(2**62, (), generator=generator, device=generator.device if generator else "cpu").item()
    with torch.random.fork_rng():
        torch.manual_seed(int(seed))
        try:
            return (p.each if isinstance(p, Product) else p).sample()
        except NotImplementedError:
            name = type(p.each if isinstance(p, Product) else p).__name__
            raise ValueError(f"likelihood must be one that can be sampled, got {name}") from None


@torch.no_grad()
def anneal(
    target: Target,
    z: Float[Tensor, "C b d"],
    betas: Float[Tensor, " T_1"],
    steps: Float[Tensor, "T_less_1 b"] | None,
    leapfrog: int,
    generator: torch.Generator | None,
) -> tuple[Float[Tensor, "C b"], Float[Tensor, "T_less_1 b"]]:
    """One run along `betas` from z: the log weights, and the step sizes of the transitions between two betas.

    Args:
        steps: the step sizes; None: they are adapted on the way
    """
    at, log_w, used = target(z), torch.zeros(z.shape[:2], device=z.device, dtype=z.dtype), []
    step = torch.full((z.shape[1],), FIRST, device=z.device, dtype=z.dtype)
    for t in range(1, len(betas)):
        # log w += (beta_t - beta_(t-1)) log p(x | z_(t-1))
        log_w = log_w + (betas[t] - betas[t - 1]) * at.log_lik
        if t == len(betas) - 1:
            break  # where z goes now no longer matters
        step = step if steps is None else steps[t - 1]
        used.append(step)
        at, accepted = transition(target, at, betas[t], step, leapfrog, generator)
        if steps is None:
            step = step * (GAIN * (accepted.mean(0) - ACCEPTED)).exp()
    return log_w, torch.stack(used) if used else step.new_zeros(0, z.shape[1])


def transition(
    target: Target,
    at: Point,
    beta: Float[Tensor, ""],
    step: Float[Tensor, " b"],
    leapfrog: int,
    generator: torch.Generator | None,
) -> tuple[Point, Float[Tensor, "C b"]]:
    """Hamiltonian Monte Carlo that leaves p(z) p(x | z)^beta as it is (Neal 2011), and its acceptance probabilities."""
    shape, like = at.z.shape, {"device": at.z.device, "dtype": at.z.dtype}
    v = torch.randn(shape, generator=generator, **like)  # type: ignore[call-overload]
    u = torch.rand(shape[:2], generator=generator, **like)  # type: ignore[call-overload]
    h, new = step[:, None], at
    before = at.log_prior + beta * at.log_lik - 0.5 * (v**2).sum(-1)
    v = v + 0.5 * h * (at.grad_prior + beta * at.grad_lik)
    for i in range(leapfrog):
        new = target(new.z + h * v)
        v = v + (0.5 if i == leapfrog - 1 else 1.0) * h * (new.grad_prior + beta * new.grad_lik)
    after = new.log_prior + beta * new.log_lik - 0.5 * (v**2).sum(-1)
    probability = (after - before).nan_to_num(nan=-torch.inf).clamp(max=0).exp()
    accept = u < probability
    chosen = (torch.where(accept[..., None] if a.ndim == 3 else accept, b, a) for a, b in zip(at, new, strict=True))
    return Point(*chosen), probability


def annealing_rows(vae: VAE, batch: Batch, memory: int) -> int:
    """How many z a target may be asked about at a time."""
    return rows_within(memory, batch, lambda data: _point(vae, data, data.x.new_zeros(1, len(data.x), vae.d)))


def _forward(
    vae: VAE, data: Batch, betas: Tensor, chains: int, leapfrog: int, rows: int, generator: torch.Generator | None
) -> tuple[Float[Tensor, "C b"], Float[Tensor, "T_less_1 b"]]:
    """Log weights from the prior to the posterior, and the step sizes that a preliminary run found."""
    whole("chains", chains), whole("leapfrog", leapfrog)
    target, p = _target(vae, data, rows), vae.p_z()

    def start(C: int) -> Tensor:
        return reparameterise(p, randn(data, C, len(data.x), vae.d, generator=generator)).detach()

    _, steps = anneal(target, start(-(-chains // 4)), betas, None, leapfrog, generator)
    return anneal(target, start(chains), betas, steps, leapfrog, generator)


def _target(vae: VAE, data: Batch, rows: int) -> Target:
    """A point's densities and gradients, computed for at most `rows` z at a time."""

    def target(z: Tensor) -> Point:
        b, columns = len(data.x), []
        for i in range(0, b, rows):
            where = slice(i, min(i + rows, b))
            part = some(data, where)
            points = [_point(vae, part, zs) for zs in z[:, where].split(max(1, rows // len(part.x)))]
            columns.append(Point(*(torch.cat(values) for values in zip(*points, strict=True))))
        return Point(*(torch.cat(values, 1) for values in zip(*columns, strict=True)))

    return target


@torch.enable_grad()
def _point(vae: VAE, data: Batch, z: Float[Tensor, "C b d"]) -> Point:
    z = z.detach().requires_grad_()
    log_prior, log_lik = vae.p_z().log_prob(z), vae.p_x(z, data.label).log_prob(data.x)
    [g_prior] = torch.autograd.grad(log_prior.sum(), z, allow_unused=True, materialize_grads=True)
    [g_lik] = torch.autograd.grad(log_lik.sum(), z, allow_unused=True, materialize_grads=True)
    return Point(z.detach(), log_prior.detach(), log_lik.detach(), g_prior, g_lik)


def _groups(batch: Batch) -> list[slice]:
    n = len(batch.x)
    return [slice(i, min(i + GROUP, n)) for i in range(0, n, GROUP)]
