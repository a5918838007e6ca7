"""How fast vae_lab is, as ratios to other ways of doing the same work, measured side by side in one run.

python scripts/benchmark.py training                      # Fashion-MNIST's shape with random pixels
python scripts/benchmark.py training --root DIR           # real Fashion-MNIST, from its four files in DIR
python scripts/benchmark.py evaluation                    # IWAE-1000 of 1,000 images
python scripts/benchmark.py sweep                         # jobs in processes of their own, against one after another
"""

import argparse
import gc
import json
import logging
import multiprocessing
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from vae_lab import decoders, encoders, hints, likelihoods, priors
from vae_lab.callbacks import Progress
from vae_lab.cli import register_resolvers
from vae_lab.commands import loggers
from vae_lab.commands import training as command
from vae_lab.data.sources import Digits, FashionMnist
from vae_lab.distributions import reparameterise
from vae_lab.evaluation.estimators import importance
from vae_lab.interfaces import Batch
from vae_lab.vae import VAE

BATCH = 100


BARE, EAGER, COMPILED, DEFAULT = "bare loop", "vae_lab", "vae_lab, compiled", "default Lightning"


class Workload(NamedTuple):
    """A network D-hidden-d and back, an MLP or `hidden` channels of convolutions; `steps` of training make one timed
    segment."""

    name: str
    title: str
    likelihood: str
    hidden: list[int]
    d: int
    activation: str
    steps: int
    goals: dict[tuple[str, str], float]  # the first / the second contender: the least that is good enough
    V: int = 1
    batch: int = BATCH

    @property
    def conv(self) -> bool:
        """Whether the network is convolutional."""
        return len(self.hidden) > 1


W1 = Workload("W1", "MLP 784-500-20, Fashion-MNIST", "bernoulli", [500], 20, "tanh", 600, {})
W5 = Workload("W5", "MLP 64-128-8, digits", "gaussian", [128], 8, "tanh", 3000, {})
WORKLOADS = [
    W1._replace(goals={(EAGER, BARE): 0.88, (EAGER, DEFAULT): 1.5, (COMPILED, BARE): 1.25}),
    W1._replace(name="W1V10", title=f"{W1.title}, V = 10", steps=120, V=10, goals={(COMPILED, BARE): 1.3}),
    W5._replace(goals={(EAGER, BARE): 0.60, (EAGER, DEFAULT): 2.5, (COMPILED, BARE): 2.0}),
    Workload(
        "conv", "conv 28x28, 32 and 64 channels, batch 128", "bernoulli", [32, 64], 20, "relu", 60,
        {(EAGER, BARE): 0.98, (COMPILED, BARE): 0.98}, batch=128,
    ),
]  # fmt: skip
Segment = Callable[[], float]  # trains for the workload's steps; the seconds it took


class Timer(pl.Callback):
    """The seconds that the steps of one epoch took, without what comes before and after them."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds = time.perf_counter() - self.start


def shipped(work: Workload, file: Path, folder: Path, engine: str) -> Segment:
    """What `train.py` runs: its configuration, W&B, checkpoints, pictures, and the progress bar of a terminal. The
    time that compiling takes, once a run, is no part of a segment."""
    kind, widths = ("conv", "channels") if work.conv else ("mlp", "hidden")

    def segment() -> float:
        overrides = [
            f"engine={engine}",
            f"d={work.d}",
            f"objective.V={work.V}",
            f"likelihood={work.likelihood}",
            f"encoder={kind}",
            f"decoder={kind}",
            f"encoder.{widths}={work.hidden}",
            f"decoder.{widths}={work.hidden[::-1]}",
            f"encoder.activation={work.activation}",
            f"decoder.activation={work.activation}",
            "data=arrays",
            f"data.root={file}",
            "data.validation=0",
            "data.test=1",
            f"sampling.batch_size={work.batch}",
            "trainer.max_epochs=1",
            "trainer.accelerator=cpu",
            f"trainer.max_steps={work.steps}",
            "logger.offline=true",
            "logger.name=benchmark",
            f"paths.run={folder}/{time.time_ns()}",
        ]
        with initialize_config_dir(str(hints.CONF), version_base="1.3"):
            cfg = compose("train", overrides)
        data, lit, trainer = command.assemble(cfg)
        timer = Timer()
        terminal = Console(file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        callbacks[:] = [timer, Progress(terminal), *(c for c in callbacks if not isinstance(c, Progress))]
        loggers.describe(trainer.loggers, {"workload": work.name})
        trainer.fit(lit, datamodule=data)
        loggers.close(trainer.loggers, 0)
        return timer.seconds

    return segment


class Net(nn.Module):
    """The same network as anyone would write it in a notebook."""

    def __init__(self, work: Workload, D: int) -> None:
        super().__init__()
        act = {"tanh": nn.Tanh, "relu": nn.ReLU}[work.activation]
        self.V, self.bernoulli = work.V, work.likelihood == "bernoulli"
        if not work.conv:
            [h] = work.hidden
            self.encoder = nn.Sequential(nn.Linear(D, h), act(), nn.Linear(h, 2 * work.d))
            self.decoder = nn.Sequential(nn.Linear(work.d, h), act(), nn.Linear(h, D))
            return
        a, b = work.hidden  # of images 28 x 28
        down = [nn.Conv2d(1, a, 3, 2, 1), act(), nn.Conv2d(a, b, 3, 2, 1), act()]
        up = [nn.ConvTranspose2d(b, a, 3, 2, 1, 1), act(), nn.ConvTranspose2d(a, 1, 3, 2, 1, 1)]
        head, tail = nn.Linear(49 * b, 2 * work.d), nn.Linear(work.d, 49 * b)
        self.encoder = nn.Sequential(nn.Unflatten(1, (1, 28, 28)), *down, nn.Flatten(), head)
        self.decoder = nn.Sequential(tail, nn.Unflatten(1, (b, 7, 7)), act(), *up, nn.Flatten())

    def losses(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Minus the ELBO, minus the reconstruction, and the KL, in nats per datapoint."""
        mu, log_sigma = self.encoder(x).chunk(2, -1)
        sigma = log_sigma.exp()
        z = mu + sigma * torch.randn(self.V, *mu.shape)
        y = self.decoder(z.flatten(0, 1)).unflatten(0, (self.V, len(x)))
        if self.bernoulli:
            rec = F.binary_cross_entropy_with_logits(y, x.expand_as(y), reduction="sum") / (self.V * len(x))
        else:
            s2 = 0.1
            rec = ((y - x) ** 2).sum() / (2 * s2 * self.V * len(x)) + 0.5 * x.shape[1] * np.log(2 * np.pi * s2)
        kl = 0.5 * (mu**2 + sigma**2 - 1 - 2 * log_sigma).sum() / len(x)
        return rec + kl, rec, kl


def bare(work: Workload, x: Tensor) -> Segment:
    """A plain PyTorch loop with fused Adam over batches sliced from memory; it logs nothing."""

    def segment() -> float:
        net = Net(work, x.shape[1])
        optimizer = torch.optim.Adam(net.parameters(), fused=True)
        start = time.perf_counter()
        for index in torch.randperm(len(x))[: work.batch * work.steps].split(work.batch):
            loss, _, _ = net.losses(x[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return time.perf_counter() - start

    return segment


class DefaultLit(pl.LightningModule):
    """A LightningModule as the tutorials write it: Adam, three values logged at each step and as epoch means."""

    def __init__(self, work: Workload, D: int) -> None:
        super().__init__()
        self.net = Net(work, D)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss, rec, kl = self.net.losses(batch[0])
        self.log("loss", loss, prog_bar=True, on_epoch=True)
        self.log("rec", rec, prog_bar=True, on_epoch=True)
        self.log("kl", kl, prog_bar=True, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


def default_lightning(work: Workload, x: Tensor, y: Tensor, folder: Path) -> Segment:
    """Lightning out of the box: a shuffling DataLoader of images and labels, default bar, logger and checkpoint."""

    def segment() -> float:
        timer = Timer()
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=work.batch, shuffle=True)
        trainer = pl.Trainer(
            max_epochs=1, limit_train_batches=work.steps, accelerator="cpu", callbacks=[timer], default_root_dir=folder
        )
        stderr, stdout = sys.stderr, sys.stdout
        with open(os.devnull, "w") as sys.stderr, open(os.devnull, "w") as sys.stdout:
            trainer.fit(DefaultLit(work, x.shape[1]), loader)
        sys.stderr, sys.stdout = stderr, stdout
        return timer.seconds

    return segment


def pixels(work: Workload, root: str | None) -> np.ndarray:
    """uint8 images, repeated or made up until there are enough for a segment of whole batches."""
    if work.name == "W5":
        x = Digits([8, 8], 0, 0).load().train.x.numpy() * 15
    elif root:
        x = FashionMnist([28, 28], 0, root, None, []).load().train.x.numpy()
    else:
        x = np.random.default_rng(0).integers(0, 256, (10_000, 28, 28), dtype=np.uint8)
    n = work.batch * work.steps + 1  # one is the test set
    return np.tile(x, (-(-n // len(x)), 1, 1))[:n]


def training(workloads: list[Workload], segments: int, root: str | None, folder: Path) -> dict[str, dict]:
    """Images per second of each contender on each workload, one thread, the contenders' segments taking turns."""
    torch.set_num_threads(1)
    results: dict[str, dict] = {}
    for work in workloads:
        file, images = folder / f"{work.name}.npz", pixels(work, root)
        labels = np.arange(len(images)) % 10
        np.savez(file, x=images, y=labels)
        x = torch.from_numpy(images).flatten(1).float().div_(255)
        contenders = {
            BARE: bare(work, x),
            EAGER: shipped(work, file, folder / "runs", "eager"),
            COMPILED: shipped(work, file, folder / "runs", "compiled"),
        }
        if any(DEFAULT in pair for pair in work.goals):
            contenders[DEFAULT] = default_lightning(work, x, torch.from_numpy(labels), folder / "lightning")
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for turn in range(segments + 1):
            for name, segment in contenders.items():
                gc.collect()  # nobody pays for what another left behind
                rate = work.batch * work.steps / segment()
                if turn:  # the first turn warms up
                    rates[name].append(rate)
        results[work.name] = summary(work, rates)
    return results


def peak_memory(work: Workload, folder: Path) -> int:
    """The bytes that a fresh process needs for vae_lab's segment, above those for its imports."""
    torch.set_num_threads(1)
    register_resolvers()
    before = peak()
    shipped(work, folder / f"{work.name}.npz", folder / "memory", "eager")()
    return peak() - before


def peak() -> int:
    """The most memory, in bytes, that this process has had."""
    status = Path("/proc/self/status")  # Linux: getrusage would count the process that this one was forked from
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024  # type: ignore[index]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def summary(work: Workload, rates: dict[str, list[float]]) -> dict:
    """Medians, and the medians over turns of one contender's rate over another's in the same turn."""
    ratios = {
        f"{a} / {b}": statistics.median(x / y for x, y in zip(rates[a], rates[b], strict=True)) for a, b in work.goals
    }
    return {
        "title": work.title,
        "images_per_second": {name: statistics.median(r) for name, r in rates.items()},
        "spread": {name: (max(r) - min(r)) / statistics.median(r) for name, r in rates.items()},
        "ratios": ratios,
        "goals": {f"{a} / {b}": goal for (a, b), goal in work.goals.items()},
        "segments": rates,
    }


def show(results: dict[str, dict], console: Console) -> None:
    """The tables of `training`."""
    table = Table("workload", "contender", "images/s", "spread")
    for name, result in results.items():
        for contender, rate in result["images_per_second"].items():
            table.add_row(name, contender, f"{rate:,.0f}", f"{result['spread'][contender]:.0%}")
    console.print(table)
    table = Table("workload", "ratio", "", "goal")
    for name, result in results.items():
        for pair, ratio in result["ratios"].items():
            goal = result["goals"][pair]
            table.add_row(name, pair, f"{ratio:.2f} {'✓' if ratio >= goal else '✗'}", f">= {goal}")
    console.print(table)


# --- evaluation

REENCODING = {"re-encodes, 100 a time": 100, "re-encodes, 500 a time": 500}
"""pythae's `get_nll` has 100 by default; 500 is quickest for this model."""
GOAL, SECONDS, D, HIDDEN, LATENT = 1.8, 60.0, (1, 28, 28), 500, 20


def scored(images: int) -> tuple[VAE, Batch]:
    """W1's model, untrained, and images; neither changes the time."""
    torch.manual_seed(0)
    encoder, decoder = (part.MLP(D, LATENT, [HIDDEN], "tanh") for part in (encoders, decoders))
    vae = VAE(encoder, decoder, likelihoods.Bernoulli(D), priors.StandardNormal(LATENT)).eval()
    return vae, Batch(torch.rand(images, *D), torch.arange(images))


@torch.no_grad()
def reencode(vae: VAE, batch: Batch, K: int, chunk: int) -> Tensor:
    """IWAE-K with the encoder run for each repeated image, one chunk at a time, as pythae's `get_nll` does."""
    found, p = [], vae.p_z()
    for x in batch.x:
        log_w = []
        for start in range(0, K, chunk):
            repeated = x.expand(min(chunk, K - start), *x.shape).contiguous()
            q = vae.encoder(Batch(repeated, torch.zeros(len(repeated), dtype=torch.int64)))
            z = reparameterise(q, torch.randn(1, len(repeated), vae.d))
            log_w.append((vae.p_x(z).log_prob(repeated) + p.log_prob(z) - q.log_prob(z))[0])
        found.append(torch.cat(log_w).logsumexp(0) - np.log(K))
    return torch.stack(found)


def evaluation(images: int, K: int, segments: int) -> dict:
    """Seconds for IWAE-K of all images, each contender's taken in segments that take turns; torch's own threads."""
    vae, batch = scored(images)
    contenders: dict[str, Callable[[Batch], object]] = {"vae_lab": lambda part: importance(vae, part, K)}
    for name, chunk in REENCODING.items():
        contenders[name] = lambda part, chunk=chunk: reencode(vae, part, K, chunk)  # type: ignore[misc]
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for work in contenders.values():
        work(Batch(batch.x[:1], batch.index[:1]))  # warms up
    for x in batch.x.tensor_split(segments):
        for name, work in contenders.items():
            start = time.perf_counter()
            work(Batch(x, torch.arange(len(x))))
            seconds[name].append(time.perf_counter() - start)
    ratios = {
        name: statistics.median(b / a for a, b in zip(seconds["vae_lab"], seconds[name], strict=True))
        for name in REENCODING
    }
    total = {name: sum(s) for name, s in seconds.items()}
    return {"images": images, "K": K, "seconds": total, "vae_lab_faster": ratios, "segments": seconds}


def evaluation_memory(K: int) -> int:
    """The bytes that a fresh process needs for IWAE-K of a few images, above those for its imports and the model."""
    vae, batch = scored(32)
    before = peak()
    importance(vae, batch, K)
    return peak() - before


def show_evaluation(result: dict, console: Console) -> None:
    """The table of `evaluation`."""
    table = Table("IWAE", "seconds", "times vae_lab's", "goal")
    for name, seconds in result["seconds"].items():
        ratio = result["vae_lab_faster"].get(name)
        whole = (result["images"], result["K"]) == (1000, 1000)
        goal = f">= {GOAL}" if ratio else f"<= {SECONDS:.0f} s for 1,000 images, K = 1,000, two cores"
        met = "" if not ratio and not whole else " ✓" if (ratio >= GOAL if ratio else seconds <= SECONDS) else " ✗"
        table.add_row(name, f"{seconds:.1f}{'' if ratio else met}", f"{ratio:.2f}{met}" if ratio else "", goal)
    console.print(table)


POOL_GOAL = 1.35  # basic launcher / pool, in seconds
LONG = 12  # times its start-up: a long cell


def sweep(cells: int, longest: float | None) -> dict:
    """The seconds of a sweep under Hydra's basic launcher, which runs one job after another on all cores, and under the
    pool: with cells of which start-up is under a tenth, and with short ones.

    Args:
        cells: how many runs, by their seed
        longest: the seconds of a long cell; None: LONG times its start-up
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pixels.npy"
        np.save(file, pixels(WORKLOADS[0], None))

        def seconds(steps: int, *more: str, threads: int | None = None) -> float:
            threads_said = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
            before = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
            outputs = f"paths.outputs={folder}/{time.time_ns()}"
            command = [sys.executable, "-m", "vae_lab.cli", "train", *more, *sweep_cell(file, steps), outputs]
            start = time.perf_counter()
            subprocess.run(command, env=before | threads_said, check=True, stdout=subprocess.DEVNULL)
            return time.perf_counter() - start

        startup = min(seconds(1, threads=1) for _ in range(2))  # the first finds nothing in the disk's cache
        calibration = 300
        step = max(1e-4, (seconds(calibration, threads=1) - startup) / calibration)
        result: dict = {"startup": startup, "cells": cells}
        for name, aim in (("long", longest or LONG * startup), ("short", startup / 4)):
            steps = max(1, round(aim / step))
            axis = "-m", f"seed={','.join(map(str, range(cells)))}"
            pool = seconds(steps, *axis, "hydra/launcher=pool")
            basic = seconds(steps, *axis, "hydra/launcher=basic")
            share = startup / (startup + steps * step)
            result[name] = {"steps": steps, "pool": pool, "basic": basic, "ratio": basic / pool, "share": share}
    return result


def sweep_cell(file: Path, steps: int) -> list[str]:
    """One run of the first workload's shape."""
    work = WORKLOADS[0]
    shape = [f"{part}.hidden={work.hidden}" for part in ("encoder", "decoder")]
    data = [
        "data=arrays",
        f"data.root={file}",
        "data.validation=0.01",
        "data.test=0.01",
        f"sampling.batch_size={BATCH}",
    ]
    rest = [f"d={work.d}", f"likelihood={work.likelihood}", "trainer.accelerator=cpu", "callbacks=[checkpoint]"]
    return [*shape, *data, *rest, "trainer.max_epochs=-1", f"trainer.max_steps={steps}", "logger=none"]


def show_sweep(result: dict, console: Console) -> None:
    """Prints what `sweep` found."""
    title = f"{result['cells']} runs, {os.cpu_count()} cores; start-up of one {result['startup']:.1f} s"
    table = Table("cells", "start-up's share", "pool, s", "basic, s", "basic / pool", "goal", title=title)
    for name in ("long", "short"):
        row = result[name]
        times = f"{row['share']:.0%}", f"{row['pool']:.0f}", f"{row['basic']:.0f}", f"{row['ratio']:.2f}"
        table.add_row(name, *times, f">= {POOL_GOAL}" if name == "long" else "-")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["training", "evaluation", "sweep"])
    parser.add_argument("--segments", type=int, default=7, help="timed segments of each contender (default 7)")
    parser.add_argument("--only", choices=[work.name for work in WORKLOADS], help="one workload (default: all)")
    parser.add_argument("--root", help="a folder with the files of Fashion-MNIST")
    parser.add_argument("--images", type=int, default=1000, help="how many to evaluate (default 1000)")
    parser.add_argument("--samples", type=int, default=1000, help="K, of each of them (default 1000)")
    parser.add_argument("--cells", type=int, default=2, help="runs of a sweep (default 2)")
    parser.add_argument("--seconds", type=float, help=f"of a sweep's long cell (default: {LONG} times its start-up)")
    parser.add_argument("--json", type=Path, default=Path("outputs/benchmark.json"), help="where the figures go")
    arguments = parser.parse_args()
    console = Console()
    found: dict[str, object] = {"torch": torch.__version__}
    if arguments.what == "training":
        results, memory = train_all(arguments)
        show(results, console)
        machine = f"one thread, {platform.machine()}"
        console.print(f"peak memory of {WORKLOADS[0].name} above the imports: {memory / 2**20:.0f} MiB; {machine}")
        found |= {"training": results, "memory": memory}
    elif arguments.what == "sweep":
        found |= {"sweep": (result := sweep(arguments.cells, arguments.seconds))}
        show_sweep(result, console)
    else:
        result = evaluation(arguments.images, arguments.samples, arguments.segments)
        show_evaluation(result, console)
        for K in (1000, 10_000):
            result[f"memory_{K}"] = memory = in_fresh_process(evaluation_memory, K)
            console.print(f"peak memory of IWAE-{K} above the imports: {memory / 2**20:.0f} MiB (allowed: 1024)")
        console.print(f"{torch.get_num_threads()} thread(s), {platform.machine()}")
        found |= {"evaluation": result}
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(found, indent=2))
    console.print(f"written: {arguments.json}")


def train_all(arguments: argparse.Namespace) -> tuple[dict[str, dict], int]:
    """The results of `training`, and the peak memory of the first workload."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    register_resolvers()
    GlobalHydra.instance().clear()
    with tempfile.TemporaryDirectory() as folder:
        workloads = [work for work in WORKLOADS if arguments.only in (None, work.name)]
        results = training(workloads, arguments.segments, arguments.root, Path(folder))
        return results, in_fresh_process(peak_memory, workloads[0], Path(folder))


def in_fresh_process(work: Callable[..., int], *given: object) -> int:
    """The value of `work`, in a process that has done nothing else."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(work, *given).result()


if __name__ == "__main__":
    main()
