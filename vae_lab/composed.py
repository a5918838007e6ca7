"""What Hydra has composed before of the same files and options, and parsed of a sweep that is typed again, kept in the
user's cache folder ($XDG_CACHE_HOME).

Of composing, kept are the steps that take most of the time, and in which no value, environment or folder counts:
which options are chosen, and what their files come to, merged. What a step came to is called by a hash of all that it
was made of: what was asked, all that `conf/` says, and the versions of what reads it; so it is never out of date. It is
not kept where more may count: other search paths, configurations of plugins, files outside of `conf/`, a file that has
changed meanwhile, a resolver that was called; nor is an error, or a warning. What is damaged is made anew.
"""

import hashlib
import json
import os
import pickle
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar, final

import hydra
import omegaconf
import yaml
from hydra._internal.config_repository import IConfigRepository
from hydra.core.config_store import ConfigNode, ConfigStore
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.types import Override
from hydra.version import getbase
from omegaconf import DictConfig, OmegaConf

from vae_lab.runs import files

T = TypeVar("T")

MOST = 100  # files, each of some kilobytes
TIMES = r"([^$]|\$\{now:[^${}]*\})*"  # a text, whatever the time: merging looks at `hydra.run.dir`, and away again
VERSIONS = [hydra.__version__, omegaconf.__version__, yaml.__version__, sys.version]


@final
class Composed:
    """Makes steps of Hydra's remember what they came to.

    Args:
        conf: the folder that all is composed of
    """

    def __init__(self, conf: Path) -> None:
        self.conf = conf
        self.called: list[str] | None = None  # what called resolvers; None: nobody knows, and nothing is kept
        self.repo: IConfigRepository | None = None
        self.said: str | None = None  # by the files, before it has read one

    def watched(self, ordinary: Callable[..., object]) -> Callable[..., object]:
        """What calls a resolver, as `${oc.env:HOME}` does: it need not come to the same again."""
        called = self.called = list[str]()

        def resolve(*arguments: object, **named: Any) -> object:  # noqa: ANN401
            called.append(str(named["node"]._value()) if "node" in named else "${}")
            return ordinary(*arguments, **named)

        return resolve

    def searched(self, ordinary: Callable[..., None]) -> Callable[..., None]:
        """What reads the first file, if only to see whether it names other search paths."""

        def search(loader: object, name: str | None, overrides: list[Override], repo: IConfigRepository) -> None:
            self.repo = repo
            self.said = self.hashed()
            paths = [o.input_line for o in overrides if o.key_or_group == "hydra.searchpath"]
            self.recalled(repo, ["search", name, paths], lambda: ordinary(loader, name, overrides, repo))

        return search

    def chosen(self, ordinary: Callable[..., object]) -> Callable[..., object]:
        """What lists the options; what it finds besides, it leaves in `overrides`, whose values are not its affair."""

        def options(overrides: object) -> dict[str, Any]:
            return {name: found for name, found in vars(overrides).items() if name != "config_overrides"}

        def choose(repo: IConfigRepository, name: str | None, overrides: object, **how: bool) -> object:
            make = lambda: (ordinary(repo, name, overrides, **how), options(overrides))  # noqa: E731
            found, left = self.recalled(repo, ["choose", name, how, options(overrides)], make)
            vars(overrides).update(left)
            return found

        return choose

    def merged(self, ordinary: Callable[..., DictConfig]) -> Callable[..., DictConfig]:
        """What merges the files of the options."""

        def merge(loader: object, defaults: list[ResultDefault], repo: IConfigRepository) -> DictConfig:
            make = lambda: ordinary(loader, defaults=defaults, repo=repo)  # noqa: E731
            found = self.recalled(repo, ["merge", *defaults], make, TIMES)
            if times := OmegaConf.get_cache(found).get("now"):
                times |= {asked: datetime.now().strftime(*asked) for asked in times}
            return found

        return merge

    def recalled(self, repo: IConfigRepository, asked: list[Any], make: Callable[[], T], aside: str = "") -> T:
        """What `make` comes to, or has come to before when the same was asked of the same files; whatever resolvers
        come to in texts that are wholly `aside`."""
        if repo is not self.repo or self.said is None or self.called is None or not self.knows_all():
            return make()
        path = _path([str(getbase()), self.said, asked])
        for kept in _kept(path):
            return kept
        before = len(self.called)
        with warnings.catch_warnings(record=True) as told:
            made = make()
        for one in told:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
        resolved = [text for text in self.called[before:] if not re.fullmatch(aside, text)]
        if not told and not resolved and self.hashed() == self.said:
            _keep(path, made)
        return made

    def knows_all(self) -> bool:
        """Whether nothing is composed but files in `conf/`, and what Hydra itself brings."""
        assert self.repo is not None
        sources = [source.full_path() for source in self.repo.get_sources()]
        plain = sources == ["pkg://hydra.conf", f"file://{self.conf}", "structured://"]
        read = vars(self.repo).get("cache", [".."])  # or looked for
        inside = not any("=/" in name or ".." in name for name in read)
        return plain and inside and not _of_plugins(ConfigStore.instance().repo)

    def hashed(self) -> str | None:
        """What all files say, as a hash; None where that is not all that counts."""
        try:
            said = str(list(_texts(self.conf)))
        except OSError:
            return None
        return hashlib.sha256(said.encode()).hexdigest() if self.knows_all() else None


@final
class Parsed:
    """Has Hydra's grammar of overrides remember what it made of the words of a command that is typed again: the first
    that it parses takes it a tenth of the time in which Python imports Hydra.

    Args:
        arguments: the command's
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self.path = _path(["parsed", *arguments])
        self.words: dict[tuple[str, str], bytes] = next(_kept(self.path), {})
        self.before = len(self.words)

    def parsed(self, ordinary: Callable[..., object]) -> Callable[..., object]:
        """What parses a word by a rule of the grammar."""

        def parse(parser: object, text: str, rule: str) -> object:
            if (text, rule) not in self.words:
                made = ordinary(parser, text, rule)
                self.words[text, rule] = pickle.dumps(made)  # now, as who has asked may change it
                return made
            return pickle.loads(self.words[text, rule])

        return parse

    def keep(self) -> None:
        """For the next time."""
        if len(self.words) > self.before:
            _keep(self.path, self.words)


def _path(made_of: Sequence[object]) -> Path:
    """The file of what is made of this, and by these versions."""
    users = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    text = json.dumps([VERSIONS, made_of], default=vars)
    return Path(users) / "vae_lab" / "composed" / hashlib.sha256(text.encode()).hexdigest()


def _kept(path: Path) -> Iterator[Any]:
    """What a file keeps; nothing where there is none, or it is damaged."""
    with suppress(OSError):
        kept = path.read_bytes()
        if sealed(kept[32:]) == kept:
            yield pickle.loads(kept[32:])


def _keep(path: Path, made: object) -> None:
    if not path.is_absolute():  # there is no home
        return
    with suppress(OSError):  # a folder that is full, or may not be written to
        files.replace(path, sealed(pickle.dumps(made)))
        for old in sorted(path.parent.iterdir(), key=os.path.getmtime)[:-MOST]:
            old.unlink(missing_ok=True)


def sealed(content: bytes) -> bytes:
    """A file's content, after a hash that tells whether it is whole."""
    return hashlib.sha256(content).digest() + content


def _texts(folder: str | Path) -> Iterator[tuple[str, bytes]]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.path):
        if entry.is_dir():
            yield from _texts(entry.path)
        elif entry.name.endswith(".yaml"):
            yield entry.path, Path(entry.path).read_bytes()


def _of_plugins(node: Mapping[str, Any] | ConfigNode) -> bool:
    return any(map(_of_plugins, node.values())) if isinstance(node, Mapping) else node.provider != "hydra"
