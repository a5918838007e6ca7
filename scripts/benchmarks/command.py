"""The command line of `scripts/benchmark.py`."""

import argparse
import importlib
import tempfile
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from benchmarks import machine, output
from benchmarks.comparison import ENOUGH, Comparison
from benchmarks.output import Found

BENCHMARKS = {
    "training": "one run on one thread: vae_lab, a bare loop, default Lightning, pythae, JAX",
    "packed": "runs that are trained together, step by step and as a whole sweep",
    "sweep": "jobs in processes of their own, against one after another",
    "startup": "what one waits for before anything is computed",
    "evaluation": "IWAE-1000 of 1,000 images",
    "scaling": "the cost of a step against the number of models, their shape, and processes",
}
"""Modules of this package, and what they measure."""


def main() -> None:
    arguments = parser().parse_args()
    if arguments.benchmark == "tables":
        return tables(arguments)
    module, console = importlib.import_module(f"benchmarks.{arguments.benchmark}"), Console()
    path = arguments.json or Path("outputs/benchmark") / f"{arguments.benchmark}.json"
    comparisons = list[Comparison]()
    about = machine.describe(arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        for comparison in module.run(arguments, Path(folder)):
            comparisons.append(comparison)
            found = Found(arguments.benchmark, about, comparisons)
            output.write(found, path)  # what is there is kept, whatever comes
            console.print(Markdown(output.tables([comparison])))
    if arguments.markdown:
        arguments.markdown.write_text(output.markdown(found))
    if arguments.plot:
        output.plot(found, arguments.plot)
    console.print(f"written: {', '.join(str(p) for p in (path, arguments.markdown, arguments.plot) if p)}")


def tables(arguments: argparse.Namespace) -> None:
    """The tables of files that were written before, on standard output or into a page; and their pictures."""
    for path in arguments.files:
        found = output.read(path)
        picture = arguments.plots and arguments.plots / f"benchmark_{found.benchmark}.png"
        if picture:
            output.plot(found, picture)
        if arguments.into:
            output.insert(found, arguments.into, picture)
        else:
            print(output.markdown(found))


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    main = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = main.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    for name, what in BENCHMARKS.items():
        one = which.add_parser(name, help=what, description=what)
        one.add_argument("--segments", type=int, default=ENOUGH, help="of each contender (default: %(default)s)")
        one.add_argument("--steps", type=int, help="of a segment (default: the workload's)")
        one.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
        one.add_argument("--root", help="a folder with the files of Fashion-MNIST (default: pixels that are made up)")
        one.add_argument("--peers-python", help="an interpreter that has jax, optax, pythae (default: this one)")
        one.add_argument("--json", type=Path, help=f"where the figures go (default: outputs/benchmark/{name}.json)")
        one.add_argument("--markdown", type=Path, help="a file for the tables")
        one.add_argument("--plot", type=Path, help="a file for the picture")
        importlib.import_module(f"benchmarks.{name}").options(one)
    one = which.add_parser("tables", help="the tables of files that were written before")
    one.add_argument("files", nargs="+", type=Path)
    one.add_argument("--into", type=Path, help="a page that has places for them: <!-- benchmark NAME --> <!-- end -->")
    one.add_argument("--plots", type=Path, help="a folder for the pictures")
    return main
