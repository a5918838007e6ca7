"""JAX: a segment's steps as one compiled scan, optax's Adam; several models at once by vmap."""

import os
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, final

# one thread: XLA has as many as there are cores when it is loaded
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.contenders import Contender, Job, Weights
from benchmarks.workloads import S2, Workload, read

Params = list[Any]  # [W, b] of the four layers, flat


def initial(work: Workload, key: Any) -> Params:  # noqa: ANN401
    """Weights drawn as torch draws a linear layer's: uniform within 1 / sqrt(n_in)."""
    D, [h] = work.side**2, work.hidden
    found = []
    for n_in, n_out in ((D, h), (h, 2 * work.d), (work.d, h), (h, D)):
        key, for_W, for_b = jax.random.split(key, 3)
        bound = n_in**-0.5
        found += [jax.random.uniform(for_W, (n_out, n_in), minval=-bound, maxval=bound)]
        found += [jax.random.uniform(for_b, (n_out,), minval=-bound, maxval=bound)]
    return found


def negative_elbo(work: Workload, params: Params, x: Any, eps: Any) -> Any:  # noqa: ANN401
    """In nats per datapoint, with the noise eps [V, B, d]."""
    act = {"tanh": jnp.tanh, "relu": jax.nn.relu}[work.activation]
    W1, b1, W2, b2, W3, b3, W4, b4 = params
    mu, log_sigma = jnp.split(act(x @ W1.T + b1) @ W2.T + b2, 2, axis=-1)
    sigma = jnp.exp(log_sigma)
    y = act((mu + sigma * eps) @ W3.T + b3) @ W4.T + b4  # [V, B, D]
    if work.likelihood == "bernoulli":
        rec = (jax.nn.softplus(y) - x * y).sum(-1).mean()
    else:
        rec = ((y - x) ** 2).sum(-1).mean() / (2 * S2) + 0.5 * x.shape[-1] * jnp.log(2 * jnp.pi * S2)
    return rec + 0.5 * (mu**2 + sigma**2 - 1 - 2 * log_sigma).sum(-1).mean()


@final
class Scan(Contender):
    """A scan over the steps of one model, or over those of several at once."""

    about = f"jax {jax.__version__}, optax {optax.__version__}"

    def __init__(self, job: Job) -> None:
        self.job, self.x, self.seed = job, jnp.asarray(read(Path(job.file))), 0
        work, optimizer = job.work, optax.adam(1e-3)
        self.initial = jax.jit(partial(initial, work))

        def step(x: Any, carry: Any, given: Any) -> Any:  # noqa: ANN401
            (params, state), (index, key) = carry, given
            eps = jax.random.normal(key, (work.V, work.batch, work.d))
            loss, gradients = jax.value_and_grad(partial(negative_elbo, work))(params, x[index], eps)
            updates, state = optimizer.update(gradients, state)
            return (optax.apply_updates(params, updates), state), loss

        def run(params: Params, order: Any, key: Any, x: Any) -> Any:  # noqa: ANN401
            keys = jax.random.split(key, work.steps)
            (params, _), losses = jax.lax.scan(partial(step, x), (params, optimizer.init(params)), (order, keys))
            return params, losses

        several = job.models > 1
        self.run = jax.jit(jax.vmap(run, in_axes=(0, 0, 0, None)) if several else run, donate_argnums=0)

    def train(self) -> tuple[float, Weights]:
        work, several = self.job.work, self.job.models > 1
        self.seed += 1
        draw = np.random.default_rng(self.seed)
        key, for_run = jax.random.split(jax.random.key(self.seed))
        if several:
            key, for_run = (jax.random.split(k, self.job.models) for k in (key, for_run))
        params = jax.block_until_ready(jax.vmap(self.initial)(key) if several else self.initial(key))
        start = perf_counter()
        n = work.batch * work.steps
        orders = [draw.permutation(len(self.x))[:n].reshape(work.steps, work.batch) for _ in range(self.job.models)]
        order = jnp.asarray(np.stack(orders) if several else orders[0])
        params, _ = jax.block_until_ready(self.run(params, order, for_run, self.x))
        seconds = perf_counter() - start
        return seconds, [np.asarray(p[-1] if several else p) for p in params]

    def loss(self, weights: Weights, x: np.ndarray, eps: np.ndarray) -> float:
        return float(negative_elbo(self.job.work, [jnp.asarray(w) for w in weights], x, eps))


def make(job: Job) -> Contender:
    """The contender of a job."""
    jax.config.update("jax_platforms", job.device)  # else a GPU, where there is one
    return Scan(job)
