"""The cells of a sweep before any of them runs: what each is, where it lies, how far it has come, what is wrong."""

import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from vae_lab import application, garbage
from vae_lab.runs import identity, record

WRONG = (ValueError, HydraException, OmegaConfBaseException)
"""What a mistake in a cell's configuration raises."""

Call = Callable[..., Any]
"""Has a module's function called with some arguments, maybe in another process."""


def here(function: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401
    """Calls a function in this process."""
    return function(*arguments)


class Cell(NamedTuple):
    """One job of a sweep: a run."""

    overrides: list[str]
    folder: str = ""
    fingerprint: str = ""
    state: str = "new"  # new, running, partial, failed or finished
    error: str | None = None  # what is wrong with its configuration


def plan(
    config: DictConfig,
    overrides_of_cells: Sequence[Sequence[str]],
    build: bool = True,
    call: Call = here,
) -> list[Cell]:
    """The cells of the sweep that Hydra has composed `config` for, in their order.

    Nothing is trained and nothing is written. Only where a cell is yet to be trained are its parts built, once for each
    distinct one, so that values out of range are known too; else torch is not imported.

    Args:
        config: the sweep's, with its `hydra` node
        overrides_of_cells: what each cell was asked for
        build: whether parts are built
        call: where that is done
    """
    cells, unknown = list[Cell](), dict[int, DictConfig]()
    for overrides, found in zip(overrides_of_cells, configs(config, overrides_of_cells), strict=True):
        cell = Cell(list(overrides))
        try:
            if isinstance(found, Exception):
                raise found
            cell = located(found, cell.overrides)
            if build and cell.state != "finished":
                unknown[len(cells)] = found
        except WRONG as error:
            cell = cell._replace(error=application.explain(error, "train", overrides))
        cells.append(cell)
    if unknown:
        asked = [cells[i].overrides for i in unknown], list(unknown.values())
        for i, wrong in zip(unknown, call(checked, *asked), strict=True):
            cells[i] = cells[i]._replace(error=wrong)
    return cells


def checked(overrides_of_cells: Sequence[Sequence[str]], found: Sequence[DictConfig]) -> list[str | None]:
    """What is wrong with the values of each cell, whose configuration was `found`; imports torch."""
    application.register_resolvers()
    with garbage.spared():
        from vae_lab.commands import check, machine

        machine.tune()  # a launcher may run the jobs in this process
    errors, seen = list[str | None](), set[str]()
    for overrides, cfg in zip(overrides_of_cells, found, strict=True):
        try:
            check.values(cfg, seen)
            errors.append(None)
        except WRONG as error:
            errors.append(application.explain(error, "train", overrides))
    return errors


def located(cfg: DictConfig, overrides: list[str]) -> Cell:
    """The cell that `cfg` describes: its identity, and how far it has come."""
    fingerprint = identity.fingerprint(cfg)
    folder = identity.folder(cfg.paths.outputs, overrides, fingerprint)
    return Cell(overrides, str(folder), fingerprint, record.state(folder))


def refuse(cells: Sequence[Cell]) -> None:
    """Raises ValueError if something is wrong with a cell: which, what it was asked for, and what is wrong."""
    wrong = [
        f"cell {i} of {len(cells)} ({' '.join(c.overrides)}): {c.error}" for i, c in enumerate(cells, 1) if c.error
    ]
    if wrong:
        more = [f"and {len(wrong) - 3} more"] if len(wrong) > 3 else []
        raise ValueError("; ".join([*wrong[:3], *more, "nothing was started"]))


def configs(config: DictConfig, overrides_of_cells: Sequence[Sequence[str]]) -> Iterator[DictConfig | Exception]:
    """Each cell's configuration without its `hydra` node, or what is wrong with it.

    Hydra composes anew for each cell, which takes it a tenth of a second. Only options of groups need that: it is done
    once for each set of them, and the plain values are applied to a copy, in their order, as Hydra does. Not even once
    for the options that `config` was composed with: its copies lack nothing but the values in which cells differ.
    """
    loader = GlobalHydra.instance().config_loader()
    assert isinstance(loader, ConfigLoaderImpl)
    elsewhere = config.hydra.searchpath  # groups that only composing finds
    parser, parsed = OverridesParser.create(), dict[str, Override]()

    def is_option(o: Override) -> bool:
        return bool(elsewhere) or (loader.repository.group_exists(o.key_or_group) and not isinstance(o.value(), dict))

    task: Any = OmegaConf.to_container(config.hydra.overrides.task)  # a list of them would resolve what they say
    given = [o for o in parser.parse_overrides(task) if not o.is_sweep_override()]
    own_options, own_values = [typed(o) for o in given if is_option(o)], [o for o in given if not is_option(o)]
    if "???" in OmegaConf.to_container(config.hydra.runtime.choices).values():  # type: ignore[union-attr]
        own_options = ["???"]  # no cell's: a sweep may leave a group open, which a run may not
    bases: dict[tuple[str, ...] | None, bytes | Exception] = {}  # pickled: a copy takes a seventh of the time
    for overrides in overrides_of_cells:
        try:
            parsed |= {o: parser.parse_overrides([o])[0] for o in overrides if o not in parsed}
            options = [o for o in overrides if is_option(parsed[o])]
            values = [parsed[o] for o in overrides if o not in options]
            left = rest(own_values, values) if [typed(parsed[o]) for o in options] == own_options else None
            key = tuple(options) if left is None else None
            if key not in bases:
                bases[key] = alone(config) if key is None else composed(loader, config, options)
            base = bases[key]
            if isinstance(base, Exception):
                raise base
            cfg = pickle.loads(base)
            ConfigLoaderImpl._apply_overrides_to_config(values if left is None else left, cfg)
            yield cfg
        except WRONG as error:
            yield error


def rest(done: Sequence[Override], wanted: Sequence[Override]) -> list[Override] | None:
    """Which of the values `wanted` are left when some are `done`; None where doing these is not all there is to do:
    where one that is done is not wanted, or the order counts, as a key is another one or lies within it."""
    before = [typed(o) for o in done]
    left = [o for o in wanted if typed(o) not in before]
    pairs = [(f"{a.key_or_group}.", f"{b.key_or_group}.") for a in left for b in done]
    if len(left) + len(done) != len(wanted) or any(a.startswith(b) or b.startswith(a) for a, b in pairs):
        return None
    return left


def typed(override: Override) -> str:
    """An override as Hydra's sweepers write it, however it was typed."""
    return f"{override.get_key_element()}={override.get_value_element_as_str()}"


def composed(loader: ConfigLoaderImpl, config: DictConfig, options: list[str]) -> bytes | Exception:
    """What Hydra makes of a set of options, without the `hydra` node, or what is wrong with it."""
    try:
        return alone(loader.load_sweep_config(config, options))
    except WRONG as error:
        return error


def alone(config: DictConfig) -> bytes:
    """A configuration without its `hydra` node, pickled."""
    cfg = pickle.loads(pickle.dumps(config))
    with open_dict(cfg):
        del cfg["hydra"]
    return pickle.dumps(cfg)
