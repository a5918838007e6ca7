"""What the command line says without composing anything: the help, and what is wrong with a word, read from `conf/`.

Importing this imports neither Hydra nor torch. `more` are folders of the user's own, beside `conf/` (--config-dir).
"""

import re
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from vae_lab.checks import closest

_here = Path(__file__).resolve().parent
CONF = _here / "conf" if (_here / "conf").is_dir() else _here.parent / "conf"  # in a wheel; in a checkout
UNREADABLE = (OSError, yaml.YAMLError)
FILES = "[!.]*.yaml"  # an editor's hidden ones are no options
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same in C, where PyYAML has it: ten times faster


def read(name: str, more: Sequence[Path] = ()) -> dict[Any, Any]:
    """A YAML file, as it stands."""
    found = yaml.load(_text(name, more), _YAML) or {}
    if not isinstance(found, dict):
        raise yaml.YAMLError(f"{name}.yaml holds no mapping")
    return found


def _text(name: str, more: Sequence[Path]) -> str:
    files = [folder / f"{name}.yaml" for folder in (CONF, *more)]
    return next((file for file in files[:-1] if file.exists()), files[-1]).read_text()


def root(command: str) -> str:
    """The name of a command's root config, and of its module: `oracle ppca` has `oracle_ppca`."""
    return command.replace(" ", "_")


def groups(command: str, more: Sequence[Path] = ()) -> dict[str, list[str]]:
    """The config groups of a command, each with its options."""
    names = [name for entry in read(root(command))["defaults"] if isinstance(entry, dict) for name in entry]
    names = [name for name in names if not name.startswith("override ")]
    return {n: sorted({file.stem for folder in (CONF, *more) for file in (folder / n).glob(FILES)}) for n in names}


def keys(command: str, more: Sequence[Path] = (), named: Container[str] | None = None) -> set[str]:
    """Every key that may be set, dotted: those at the root, and those of each group's options.

    Args:
        named: the groups whose keys matter, which takes less time; of the others, `defaults` still counts
    """
    found = set(_dotted({k: v for k, v in read(root(command)).items() if k not in ("defaults", "hydra")}, ""))
    for group, options in groups(command, more).items():
        if group != "experiment":  # an experiment has no keys of its own
            for option in options:
                if named is not None and group not in named and "defaults" not in _text(f"{group}/{option}", more):
                    continue
                where = f"{group}.{option}." if group == "callbacks" else f"{group}."
                found |= {group, where.rstrip("."), *_dotted(read(f"{group}/{option}", more), where)}
    return found


def sweeps() -> bool:
    """Whether a file of `conf/` may make a sweep of a command that is given no -m, by `hydra.mode=MULTIRUN`."""
    return any("MULTIRUN" in file.read_text() for file in CONF.rglob(FILES))


@cache
def words(command: str) -> frozenset[str]:
    """The keys at the root of a command's configuration."""
    return frozenset(key.partition(".")[0] for key in keys(command))


@cache
def floats(group: str) -> frozenset[tuple[str, str]]:
    """The class and the key of each value in a group's options that is a float."""
    nodes = [read(f"{group}/{file.stem}") for file in (CONF / group).glob(FILES)]
    return frozenset((node["_target_"], key) for node in nodes for key, v in node.items() if isinstance(v, float))


def _dotted(node: dict[Any, Any], prefix: str) -> Iterator[str]:
    for key, value in node.items():
        if not str(key).startswith("_"):
            yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")


def check(command: str, arguments: Iterable[str]) -> None:
    """Raises ValueError for a key or option that is nowhere in `conf/`: what Hydra would refuse, said sooner."""
    with suppress(*UNREADABLE):  # a file that cannot be read: Hydra says so, if it takes it
        _check(command, list(arguments))


def _check(command: str, arguments: Sequence[str]) -> None:
    if any(a.startswith(("-cp", "-cn", "--config-path", "--config-name")) for a in arguments):
        return  # another root
    if any(a.lstrip("+").startswith("hydra.searchpath=") for a in arguments):
        return  # options from anywhere
    more = _folders(arguments)
    known = keys(command, more, {re.split(r"\W", argument)[0] for argument in arguments})
    choices = groups(command, more)
    experiments = _experiments(arguments, choices, more)
    made = [entry for file in experiments for entry in file.get("defaults", ()) if not _is_override(entry)]
    if made or "defaults" in known or any(part.endswith(".defaults") for part in known):
        return  # an option that is made of others: only composing it tells its keys
    own = {key for file in experiments for key in _dotted(file, "")}  # which it may add to what the options have
    chosen = _chosen(command, arguments, choices, more)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key.startswith("~") and key[1:] in choices.keys() - {"experiment"}:
            raise ValueError(left_out(command, key[1:], choices[key[1:]]))
        if not equals or key.startswith(("-", "+", "~", "hydra")) or "@" in key or Path(argument) in more:
            continue
        if key in choices:
            plain = re.fullmatch(r"[\w\s,[\]]+", value)  # no glob, no interpolation
            for option in re.findall(r"\w+", value) if plain else ():
                if option not in choices[key]:
                    raise ValueError(unknown_option(key, option, choices[key]))
        elif (name := re.sub(r"(\.\d+|\._\w+_)$", "", key)) in own:
            continue
        elif name not in known:
            raise ValueError(unknown_key(argument, key, keys(command, more)))
        elif (group := key.partition(".")[0]) in chosen and not _has(group, chosen[group], key, more):
            raise ValueError(absent_key(command, argument, key, more))


def _folders(arguments: Sequence[str]) -> list[Path]:
    """What is given as --config-dir."""
    text = "\0".join(arguments)
    return [Path(folder) for folder in re.findall(r"(?:^|\0)(?:--config-dir|-cd)[=\0]([^\0]+)", text)]


def _experiments(arguments: Iterable[str], choices: dict[str, list[str]], more: Sequence[Path]) -> list[dict[Any, Any]]:
    """The files of the experiments that are asked for."""
    asked = {word for a in arguments if a.startswith("experiment=") for word in re.split(r"[^\w-]+", a)[1:]}
    return [read(f"experiment/{name}", more) for name in choices.get("experiment", ()) if name in asked]


def _is_override(entry: object) -> bool:
    """Whether an entry of an experiment's defaults is nothing but another option of a group, or the file itself."""
    return entry == "_self_" or (isinstance(entry, dict) and all(str(key).startswith("override ") for key in entry))


def _chosen(
    command: str, arguments: Iterable[str], choices: dict[str, list[str]], more: Sequence[Path]
) -> dict[str, str]:
    """The one option of each group that has one for sure: the default, the experiment's, or the last asked for."""
    asked = dict(a.lstrip("+").partition("=")[::2] for a in arguments)
    chosen = dict[str, Any]()
    experiment = asked.get("experiment", "null")
    files = [read(root(command))]
    if experiment != "null":
        if experiment not in choices.get("experiment", ()):
            return {}  # several of them
        files += [read(f"experiment/{experiment}", more)]
    for entry in (entry for file in files for entry in file.get("defaults", ()) if isinstance(entry, dict)):
        chosen |= {re.sub("^override /", "", str(k)): v for k, v in entry.items()}
    chosen |= {k: v for k, v in asked.items() if k in chosen}
    return {k: v for k, v in chosen.items() if isinstance(v, str) and v in choices.get(k, ()) and k != "experiment"}


def _has(group: str, option: str, key: str, more: Sequence[Path]) -> bool:
    name = re.sub(r"(\.\d+|\._\w+_)$", "", key).partition(".")[2]
    return name in ("", *_dotted(read(f"{group}/{option}", more), ""))


def unknown_option(group: str, option: str, allowed: Sequence[str]) -> str:
    """The message for a group's option that does not exist."""
    return f"{group}={option}: no such option; {group} must be one of {', '.join(allowed)}{closest(option, allowed)}"


def left_out(command: str, group: str, allowed: Sequence[str]) -> str:
    """The message for a group that is to have no option."""
    defaults = [entry[group] for entry in read(root(command))["defaults"] if group in entry]
    several = f"{group}=[] is without any; " if isinstance(defaults[0], list) else ""
    return f"~{group}: {several}{group} must be {'some' if several else 'one'} of {', '.join(allowed)}"


def unknown_key(argument: str, key: str, known: Iterable[str]) -> str:
    """The message for a key that does not exist."""
    known = list(known)
    parent = key.rpartition(".")[0]
    inside = {k[len(parent) + 1 :].split(".")[0] for k in known if k.startswith(f"{parent}.")} if parent else set()
    allowed = inside or {k.split(".")[0] for k in known}
    # the closest key; a key's first word may be what is wrong, and its last word all that is right
    last = key.rpartition(".")[2]
    near = f"; did you mean {last!r}?" if last in known else closest(key, known)
    near = near or closest(key.split(".")[0], {k.split(".")[0] for k in known})
    where = f"keys of {parent}" if inside else "keys"
    return f"{argument}: no key {key!r}{near}; {where}: {', '.join(sorted(allowed))}"


def absent_key(command: str, argument: str, key: str, more: Sequence[Path] = ()) -> str:
    """The message for a key that the composed configuration has not: only another option has it, or none."""
    if key not in (known := keys(command, more)):
        return unknown_key(argument, key, known)
    group, _, name = key.partition(".")
    options = groups(command, more)[group]
    having = [option for option in options if name in _dotted(read(f"{group}/{option}", more), "")]
    return f"{argument}: no key {name!r} in the chosen {group}; it belongs to {group}={'|'.join(having)}"


def usage(command: str, what: str) -> str:
    """The text of `vae-lab COMMAND --help`."""
    own = read(root(command))
    defaults = {k: v for entry in own["defaults"] if isinstance(entry, dict) for k, v in entry.items()}
    lines = [f"vae-lab {command}: {what}", "", f"usage: vae-lab {command} [key=value ...]", ""]
    choices = groups(command)
    if choices:
        lines += ["groups, with their options (* by default) and what each option takes:"]
    for group, options in choices.items():
        chosen = defaults[group] if isinstance(defaults[group], list) else [defaults[group]]
        for i, option in enumerate(options):
            node = read(f"{group}/{option}") if group != "experiment" else {}
            values = [f"{k}={_short(v)}" for k, v in node.items() if not k.startswith("_") and "${" not in str(v)]
            mark = "*" if option in chosen else " "
            lines += [f"  {group if i == 0 else '':15}{mark}{option:20} {' '.join(values)}".rstrip()]
    lines += ["", "keys of their own:"]
    for key, value in own.items():
        if key not in ("defaults", "hydra", "paths"):
            inside = {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
            lines += [f"  {k}={_short(v)}" for k, v in inside.items()]
    lines += [f"  paths.{k}={_short(v)}" for k, v in own.get("paths", {}).items() if "${" not in str(v)]
    lines += ["", "-m runs every combination of comma-separated values; --cfg job prints the whole configuration;"]
    lines += ["--config-dir DIR adds groups and options of your own; --hydra-help shows the rest."]
    return "\n".join(lines)


def _short(value: object) -> str:
    if isinstance(value, dict):
        return "{...}"
    if isinstance(value, list):
        return "[" + ",".join(_short(v) for v in value) + "]" if len(str(value)) < 40 else "[...]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
