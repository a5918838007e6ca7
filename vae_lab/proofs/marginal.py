"""(1), (2): log p(x) by draws from the prior, and the product over the data that cannot be used."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from vae_lab.evaluation.estimators import naive_mc
from vae_lab.oracles import LinearGaussian
from vae_lab.proofs.models import (
    Curve,
    batch_of,
    bent,
    example,
    linear,
    mean_and_error,
    noise,
    stream,
    variance_and_error,
)
from vae_lab.proofs.row import ROUNDING, SIGMAS, Row


def one_draw() -> Iterator[Row]:
    """(1): of p(x | z), z ~ p(z), the mean is p(x), and the second moment is that of a normal of variance s2 / 2."""
    model, x = example(s2=0.5)
    n = 400_000
    with torch.no_grad():
        log_p = linear(model).p_x(noise(n, 1, 2, key="draws")).log_prob(x)  # [n, B]
    relative = (log_p - model.log_prob(x)).exp()
    (mean, error), (square, spread) = mean_and_error(relative), mean_and_error(relative**2)
    cv2 = model.cv2(x)
    for j in (0, 1):
        yield Row(f"E[p(x | z)] / p(x), x_{j + 1}", mean[j].item(), "=", 1, SIGMAS * error[j].item())
        measured, tolerance = square[j].item() - 1, SIGMAS * spread[j].item()
        yield Row(f"CV^2 of p(x | z), x_{j + 1}", measured, "=", cv2[j].item(), tolerance)


def naive() -> Iterator[Row]:
    """(1): log p by m prior draws errs by CV^2 / m in variance and by -CV^2 / (2 m) on average, as m grows."""
    model, x = example(s2=0.5)
    m, R = 4000, 2000
    cv2, exact = model.cv2(x[:1]).item(), model.log_prob(x[:1]).item()
    found = naive_mc(linear(model), batch_of(x[:1].expand(R, -1)), m, stream("naive"))
    (mean, error), (variance, spread) = mean_and_error(found.log_p), variance_and_error(found.log_p)
    # both are first terms of series in 1 / m, whose next ones are smaller by a factor of CV^2 / m or so
    rest = 10 * cv2 / m
    bias = -cv2 / (2 * m)
    yield Row("mean log p, m=4000", mean.item(), "=", exact + bias, SIGMAS * error.item() + rest * abs(bias))
    tolerance = SIGMAS * spread.item() + rest * cv2 / m
    yield Row("variance of log p, m=4000", variance.item(), "=", cv2 / m, tolerance)
    squares, spread = mean_and_error(found.error**2)
    yield Row("its own error, squared", squares.item(), "=", cv2 / m, SIGMAS * spread.item() + rest * cv2 / m)
    ess, spread = mean_and_error(found.ess)
    size = m / (1 + cv2)
    yield Row("effective sample size", ess.item(), "=", size, SIGMAS * spread.item() + rest * size)


def naive_bent() -> Iterator[Row]:
    """(1): the same for a model that is not linear, against quadrature's -2.0211260."""
    x = torch.tensor([[0.5, 0.8, 0.6]], dtype=torch.float64)
    [log_p], [error], _ = naive_mc(bent(Curve(), [[1.0]], [[0.5]]), batch_of(x), 400_000, stream("bent"))
    yield Row("log p, m=400000", log_p.item(), "=", -2.0211260, SIGMAS * error.item())


def product() -> Iterator[Row]:
    """(2): log of the mean over i of prod_j p(x_j | z_ji) is right only as the mean is: of variance
    prod_j (1 + CV_j^2) - 1 over m, not sum_j CV_j^2 over m; with one z_i for all x_j it is another number."""
    model, x = small()
    n, m, R = len(x), 2000, 400
    vae, exact, cv2 = linear(model), model.log_prob(x).sum().item(), model.cv2(x)
    with torch.no_grad():
        own = torch.stack([vae.p_x(noise(m, n, 1, key=f"own {r}")).log_prob(x).sum(1) for r in range(R)])
        shared = torch.stack([vae.p_x(noise(m, 1, 1, key=f"shared {r}")).log_prob(x).sum(1) for r in range(R)])

    relative = (own - exact).exp()  # [R, m]
    mean, error = mean_and_error(relative.flatten())
    yield Row("as printed: E[product] / p(x_1 ... x_n)", mean.item(), "=", 1, SIGMAS * error.item())
    square, spread = mean_and_error(relative.flatten() ** 2)
    explodes = (1 + cv2).prod().item() - 1
    yield Row("as printed: CV^2 of the product", square.item() - 1, "=", explodes, SIGMAS * spread.item())

    copies = batch_of(x.repeat(R, 1))
    sums = naive_mc(vae, copies, m, stream("product")).log_p.unflatten(0, (R, n)).sum(1)
    (mean, error), (variance, spread) = mean_and_error(sums), variance_and_error(sums)
    total = cv2.sum().item()
    rest = 10 * cv2.max().item() / m
    value, tolerance = exact - total / (2 * m), SIGMAS * error.item() + rest * total / m
    yield Row("corrected: sum_j log mean_i p(x_j | z_ji)", mean.item(), "=", value, tolerance)
    tolerance = SIGMAS * spread.item() + rest * total / m
    yield Row("corrected: its variance", variance.item(), "=", total / m, tolerance)
    yield Row("corrected: CV^2, smaller than the product's", variance.item() * m, "<=", explodes, 0)

    # z shared by all x_j: n data become one of n D values
    as_one = LinearGaussian(model.W.repeat(n, 1), model.b.repeat(n), model.s2)
    expected = as_one.log_prob(x.flatten()).item()
    ratio, error = mean_and_error((shared - expected).exp().flatten())
    yield Row("z shared: E[product] / p(x_1 ... x_n | one z)", ratio.item(), "=", 1, SIGMAS * error.item())
    yield Row("z shared: log of that, not sum_j log p(x_j)", expected, "!=", exact, ROUNDING)


def hopeless() -> Iterator[Row]:
    """(2): the product's estimate where CV^2 is not small: of five data and m = 2000 draws it is far too low."""
    model, x = example(D=5, d=2, s2=0.03)
    n, m, R = len(x), 2000, 200
    vae, exact, total = linear(model), model.log_prob(x).sum().item(), model.cv2(x).sum().item()
    with torch.no_grad():
        own = torch.stack([vae.p_x(noise(m, n, 2, key=f"hopeless {r}")).log_prob(x).sum(1) for r in range(R)])
    mean, error = mean_and_error(own.logsumexp(1) - math.log(m))
    far = exact - 1 - SIGMAS * error.item()
    yield Row("as printed: mean of 200, a nat or more below log p", mean.item(), "<=", far, 0)
    sums = naive_mc(vae, batch_of(x.repeat(R, 1)), m, stream("hopeless")).log_p.unflatten(0, (R, n)).sum(1)
    mean, error = mean_and_error(sums)
    bias = -total / (2 * m)
    value, tolerance = exact + bias, SIGMAS * error.item() + abs(bias)
    yield Row("corrected: mean of 200", mean.item(), "=", value, tolerance)


def small() -> tuple[LinearGaussian, Tensor]:
    """One latent dimension, wide noise: CV^2 is below 1 for each of five data."""
    model = LinearGaussian(torch.tensor([[0.8], [-0.5]], dtype=torch.float64), torch.zeros(2, dtype=torch.float64), 1.0)
    x = noise(5, 1, key="small z") @ model.W.T + noise(5, 2, key="small x")
    return model, x
