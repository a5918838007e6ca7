"""Which library makes a compiled step's products, and that they are the same but for rounding."""

from math import inf

import pytest
import torch
from test_engine import ELBO, make, same, train
from torch.fx.experimental.proxy_tensor import make_fx

from vae_lab.engine import products
from vae_lab.engine.engines import Compiled, Eager
from vae_lab.engine.products import HALVED, WHOLE, OneDnn, exact, factors, least, quickest

ZEN4 = {"cpu_name": "AMD EPYC", "avx512_f": True, "avx_vnni": False}
ZEN5 = ZEN4 | {"avx_vnni": True}


unrounded = pytest.mark.skipif(
    bool(getattr(torch.cpu, "get_capabilities", dict)().get("amx_bf16")), reason="oneDNN rounds to bfloat16 here"
)


def precision():
    return torch.backends.mkldnn.matmul.fp32_precision


def pair(m, k, n):
    return torch.empty(m, k), torch.empty(k, n)


@pytest.fixture
def zen(monkeypatch):
    """This CPU is taken for an AMD with vectors of 512 bits."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: ZEN5, raising=False)
    for library in torch.backends.mkl, torch.backends.mkldnn:
        monkeypatch.setattr(library, "is_available", lambda: True)


@pytest.mark.parametrize(
    ("known", "flops"),
    [
        (ZEN5, WHOLE),
        (ZEN4, HALVED),
        (ZEN5 | {"cpu_name": "AMD Ryzen 5 5600X", "avx512_f": False}, inf),
        (ZEN5 | {"cpu_name": "Intel(R) Xeon(R)"}, inf),
        ({"architecture": "aarch64"}, inf),
    ],
)
def test_from_where_on_onednn_is_quicker_depends_on_the_processor(zen, monkeypatch, known, flops):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    assert least() == flops
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert least() == inf


def test_older_releases_of_torch_do_not_tell(zen, monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert least() == inf


def test_a_graphs_products_are_found():
    def some(x, y, z):
        return torch.addmm(x[0], x, y) @ y, torch.bmm(z, z.mT), torch.baddbmm(z, z, z), x * x

    like = torch.zeros(4, 4), torch.zeros(4, 4), torch.zeros(2, 4, 4)
    found = factors(make_fx(some, tracing_mode="fake")(*like))
    assert sorted(len(a.shape) for a, _ in found) == [2, 2, 3, 3]
    assert all(a.shape == b.shape for a, b in found) and any(b.stride() == (16, 1, 4) for _, b in found)


@unrounded
def test_onednn_is_asked_where_it_is_quicker(zen):
    side = round((WHOLE / 2) ** (1 / 3)) + 1
    large, larger, small = pair(side, side, side), pair(side, side, 2 * side), pair(side, side, 1)
    before = precision()
    assert not any(isinstance(quickest(pairs), OneDnn) for pairs in ([], [small], [large, small]))
    for pairs in [large], [larger, small]:
        with quickest(pairs):
            assert precision() == "bf16"
    assert precision() == before


def test_the_users_precision_is_back_after_a_step_that_fails():
    before, library = precision(), OneDnn()
    for _ in range(2):
        with pytest.raises(ArithmeticError), library:
            raise ArithmeticError
        assert precision() == before


def test_what_would_be_rounded_is_left_to_mkl(zen, monkeypatch):
    pairs = [(torch.empty(8, 300), torch.empty(300, 5)), (torch.empty(2, 8, 300), torch.empty(2, 5, 300).mT)]
    assert exact(pairs)
    whole = torch.Tensor.matmul
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: whole(a.bfloat16().float(), b.bfloat16().float()))
    assert not exact(pairs[:1]) and not exact(pairs[1:])
    assert not isinstance(quickest([pair(200, 200, 200)]), OneDnn)


@unrounded
def test_onednns_products_are_those_of_float32():
    torch.manual_seed(0)
    for a, b in (torch.randn(100, 784), torch.randn(784, 50)), (torch.randn(4, 100, 64), torch.randn(4, 20, 64).mT):
        with OneDnn():
            found = a @ b
        # each sum's error is at most that of its K roundings, each 2^-24 of the sum of the terms' sizes
        bound = a.shape[-1] * 2**-24 * (a.double().abs() @ b.double().abs())
        assert ((found - a.double() @ b.double()).abs() <= bound).all()


@unrounded
def test_a_step_is_the_same_by_either_library(zen, monkeypatch):
    monkeypatch.setattr(products, "WHOLE", 0.0)
    vae, asked = make(), []

    def compiler(graph, given):
        def call(*values):
            asked.append(precision())
            return graph(*values)

        return call

    same(train(Compiled(None, compiler), vae, ELBO, steps=50), train(Eager(), vae, ELBO, steps=50), 1e-5)
    assert set(asked) == {"bf16"}
