"""Under test, every call into vae_lab is checked against its annotations, the shapes of tensors included."""

import os
import signal
from pathlib import Path
from tempfile import TemporaryDirectory

import jaxtyping
import pytest
import torch
from jaxtyping import install_import_hook

# before anything imports vae_lab; a float may be given as an int, as type checkers have it (PEP 484)
install_import_hook("vae_lab", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

# the tests' tensors are small: more threads only wait for each other, also in the processes that tests start
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

# a shell ignores Ctrl-C in what it starts in the background, and what is ignored is so in the processes of tests too
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# what was composed for a test is no user's affair; what is compiled is kept from one run of the tests to the next
users = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(users / "vae_lab" / "compiled"))
cache = TemporaryDirectory(ignore_cleanup_errors=True)
os.environ["XDG_CACHE_HOME"] = cache.name


@pytest.fixture(autouse=True)
def no_shared_service():
    """W&B has the processes that one with a run starts send to its own service: those of a later test must not."""
    yield
    os.environ.pop("WANDB_SERVICE", None)


@pytest.fixture(scope="session")
def data_folder():
    """The folder of real data sets."""
    folder = os.environ.get("VAE_LAB_DATA")
    if folder is None:
        pytest.skip("VAE_LAB_DATA, a folder of real data sets, is not set")
    return Path(folder)


@pytest.fixture
def unchecked(monkeypatch):
    """No check of annotations: for what vae_lab itself says about an argument of the wrong type."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="session")
def swept(tmp_path_factory):
    """The outputs of a sweep of 24 real runs; it takes minutes."""
    from report_fixture import sweep  # here, as few tests need it

    return sweep(tmp_path_factory.mktemp("swept"))
