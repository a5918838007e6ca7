"""What was composed before is never out of date: with it and without it Hydra comes to the same."""

import shutil
import warnings
from datetime import datetime

import pytest
from hydra import initialize_config_dir
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import Node, OmegaConf
from omegaconf.base import Box

from vae_lab import composed, composing, hints
from vae_lab.application import register_resolvers

CONF = hints.CONF
COMMANDS = [
    "",
    "d=3 likelihood=bernoulli",
    "experiment=linear_digits ~callbacks.pictures +trainer.limit_val_batches=2",
    "-m d=2,3 encoder=mlp,conv likelihood=laplace hydra/launcher=packed hydra.job.chdir=true",
    "callbacks=[progress] logger=none ~schedule encoder.hidden=[3] hydra.sweep.dir=${d}",
]


@pytest.fixture(autouse=True)
def conf(tmp_path, monkeypatch):
    """Files to be changed; and nothing has been composed yet."""
    register_resolvers()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hints, "CONF", tmp_path / "conf")
    return shutil.copytree(CONF, tmp_path / "conf")


@pytest.fixture
def source():
    """What reads Hydra's files."""
    Plugins.instance()
    return SourcesRegistry.instance().resolve("file")


@pytest.fixture
def read(source, monkeypatch):
    """The names of the files that Hydra reads."""
    names, load = [], source.load_config
    monkeypatch.setattr(
        source, "load_config", lambda self, config_path: names.append(config_path) or load(self, config_path)
    )
    return names


def compose(words=""):
    """What Hydra composes for a command, all of it."""
    overrides, mode = words.removeprefix("-m").split(), RunMode.MULTIRUN if words.startswith("-m") else RunMode.RUN
    with initialize_config_dir(str(hints.CONF), version_base="1.3"):
        return whole(GlobalHydra.instance().config_loader().load_configuration("train", overrides, mode))


def recall(words=""):
    """The same, where it may have been composed before."""
    with composing.quick():
        return compose(words)


def whole(node, parent=None):
    """A node with its types and flags, and interpolations as they stand."""
    assert node._get_parent() is parent
    content = node.__dict__["_content"] if isinstance(node, Box) else node._value()
    if isinstance(content, Node):
        content = whole(content, node)
    elif isinstance(content, dict):
        content = {key: whole(value, node) for key, value in content.items()}
    elif isinstance(content, list):
        content = [whole(value, node) for value in content]
    metadata = vars(node._metadata) | {"resolver_cache": {k: list(v) for k, v in resolved(node)}}
    return type(node), metadata, content


def resolved(node):
    return vars(node._metadata).get("resolver_cache", {}).items()


def kept(tmp_path):
    return sorted((tmp_path / "cache").glob("vae_lab/composed/*"))


@pytest.mark.parametrize("words", COMMANDS)
def test_what_was_composed_before_is_what_would_be_composed(words, read):
    ordinary = compose(words)
    read.clear()
    assert recall(words) == ordinary
    assert len(read) > 15
    read.clear()
    assert recall(words) == ordinary
    assert not read


def test_values_and_folders_are_not_remembered(read, tmp_path, monkeypatch):
    recall("d=3 hydra.job.env_copy=[HOME]")
    monkeypatch.setenv("HOME", "/elsewhere")
    monkeypatch.chdir(tmp_path)
    for words in ("d=4 seed=5 hydra.job.env_copy=[HOME]", "~seed d=${data.shape} +e=[${d}]"):
        read.clear()
        found = recall(words)
        assert not read
        assert found == compose(words)


def test_the_time_is_not_remembered(monkeypatch):
    class Later(datetime):
        @classmethod
        def now(cls):
            return cls(2000, 1, 2, 3, 4, 5)

    recall()
    monkeypatch.setattr(composed, "datetime", Later)
    with composing.quick(), initialize_config_dir(str(hints.CONF), version_base="1.3"):
        cfg = GlobalHydra.instance().config_loader().load_configuration("train", [], RunMode.RUN)
        assert OmegaConf.create({"a": "${now:%Y-%m-%d} ${now:%H-%M-%S}"}, parent=cfg).a == "2000-01-02 03-04-05"


def change(conf):
    (conf / "encoder" / "mlp.yaml").write_text("_target_: changed\nhidden: ${d}")


def add(conf):
    (conf / "encoder" / "new.yaml").write_text("new: 1")
    text = (conf / "train.yaml").read_text()
    (conf / "train.yaml").write_text(text.replace("- encoder: mlp", "- encoder: new"))


def shadow(conf):
    """A folder's file goes before the package's, if Hydra has it so."""
    (conf / "hydra" / "job_logging").mkdir()
    (conf / "hydra" / "job_logging" / "none.yaml").write_text("root: mine")


def remove(conf):
    (conf / "experiment" / "linear_digits.yaml").unlink()


@pytest.mark.parametrize("alter", [change, add, shadow, remove])
def test_a_file_that_changes_counts_at_once(alter, conf):
    before = recall()
    alter(conf)
    assert recall() == compose() == recall()
    assert (recall() == before) == (alter in (remove, shadow))


def test_an_option_that_was_missing_is_found_once_it_is_there(conf, tmp_path):
    for _ in range(2):
        with pytest.raises(MissingConfigException):
            recall("encoder=new")
    (conf / "encoder" / "new.yaml").write_text("new: 1")
    assert recall("encoder=new") == compose("encoder=new")


def test_other_search_paths_count(conf, tmp_path):
    (more := tmp_path / "more" / "encoder").mkdir(parents=True)
    words = f"hydra.searchpath=[file://{tmp_path / 'more'}] encoder=new"
    for text in ("new: 1", "new: 2"):
        (more / "new.yaml").write_text(text)
        assert recall(words) == compose(words)
    assert recall() == compose()
    shutil.rmtree(conf / "encoder")
    shutil.copytree(CONF / "encoder", more, dirs_exist_ok=True)
    words = words.replace("new", "mlp")
    assert recall(words) == compose(words)


def test_files_from_elsewhere_count(conf, tmp_path):
    (conf / "experiment" / "far.yaml").write_text("# @package _global_\ndefaults: [{optional /..@far: far}]")
    words, near = "experiment=far", recall("experiment=far")
    (tmp_path / "far.yaml").write_text("a: 1")
    assert recall(words) == compose(words) != near
    (tmp_path / "far.yaml").write_text("a: 2")
    assert recall(words) == compose(words)


def test_the_environment_counts_where_files_ask_for_it(conf, monkeypatch):
    text = (conf / "train.yaml").read_text()
    (conf / "train.yaml").write_text(text.replace("- encoder: mlp", "- encoder: ${oc.env:CHOICE}"))
    found = []
    for choice in ("mlp", "conv"):
        monkeypatch.setenv("CHOICE", choice)
        assert recall() == compose()
        found.append(recall())
    assert found[0] != found[1]


def test_configurations_of_plugins_count(monkeypatch):
    store = ConfigStore.instance()
    monkeypatch.setattr(store, "repo", store.repo | {"plugged": {}})
    for value in (1, 2):
        store.store("new", {"value": value}, group="plugged", provider="plugin")
        assert recall("+plugged=new") == compose("+plugged=new")


def test_a_file_that_changes_meanwhile_counts(conf, source, monkeypatch):
    load = source.load_config

    def late(self, config_path):
        found = load(self, config_path)
        change(conf)
        return found

    before = compose()
    with monkeypatch.context() as patch:
        patch.setattr(source, "load_config", late)
        recall()
    shutil.copytree(CONF, conf, dirs_exist_ok=True)
    assert recall() == compose() == before


def test_a_warning_comes_again(conf):
    text = (conf / "train.yaml").read_text()
    (conf / "train.yaml").write_text(text.replace("  - _self_\n", ""))
    for _ in range(3):
        with warnings.catch_warnings(record=True) as told:
            recall()
        assert any("_self_" in str(one.message) for one in told)


@pytest.mark.parametrize(
    "damage", [lambda b: b"", lambda b: b[:-1], lambda b: b[:40], lambda b: b.replace(b"encoder", b"decoder")]
)
def test_a_damaged_file_is_made_anew(damage, tmp_path, read):
    ordinary = recall()
    for path in (files := kept(tmp_path)):
        path.write_bytes(damage(path.read_bytes()))
    assert recall() == ordinary
    read.clear()
    assert recall() == ordinary and kept(tmp_path) == files
    assert not read


def test_a_folder_that_cannot_be_written_to_is_no_mistake(tmp_path):
    (tmp_path / "cache").write_text("no folder")
    assert recall() == recall() == compose()


def test_the_newest_are_kept(tmp_path, monkeypatch, read):
    monkeypatch.setattr(composed, "MOST", 6)
    for option in ("mlp", "conv", "linear"):
        recall(f"encoder={option}")
    assert len(kept(tmp_path)) == 6
    read.clear()
    recall("encoder=linear")
    assert read == ["train"]  # the first step was the same for all, and so the oldest


def test_nothing_is_kept_where_nobody_counts_resolvers(tmp_path, monkeypatch):
    monkeypatch.setattr(composed.Composed, "watched", lambda self, ordinary: ordinary)
    assert recall() == compose()
    assert not kept(tmp_path)
    assert OmegaConf.create({"a": "${oc.env:HOME}"}).a


def test_without_a_home_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    before = set(tmp_path.rglob("*"))
    assert recall() == compose()
    assert set(tmp_path.rglob("*")) == before


# --- words

WORDS = ["d=3", "d=1,2", "seed=range(8)", "a@b.c=[1,{x: 'y z'}]", "~logger", "+x=${d}", "o.lr=interval(0,1)", "e=*"]


@pytest.fixture
def asked(monkeypatch):
    """The words that Hydra's grammar parses."""
    words, parse = [], OverridesParser.parse_rule
    monkeypatch.setattr(
        OverridesParser, "parse_rule", lambda self, text, rule: words.append(text) or parse(self, text, rule)
    )
    return words


def parsed(words, arguments=("-m",)):
    with composing.recalled(arguments):
        return OverridesParser.create().parse_overrides(words)


def test_a_sweep_that_is_typed_again_is_not_parsed_again(asked):
    first = parsed(WORDS)
    assert asked == WORDS
    assert parsed(WORDS) == first == OverridesParser.create().parse_overrides(WORDS)
    assert asked == 2 * WORDS
    parsed([*WORDS, "d=9"])  # another cell
    assert parsed([*WORDS, "d=9"])[-1].value() == 9 and asked == [*WORDS, *WORDS, "d=9"]
    parsed(["d=3"], ("-m", "d=3"))  # another command
    assert asked[-1] == "d=3"


def test_what_somebody_does_to_a_parsed_word_is_forgotten():
    for _ in range(2):
        with composing.recalled(["-m"]):
            parser = OverridesParser.create()
            for _ in range(2):
                [found] = parser.parse_overrides(["h=[1,2]"])
                assert found.value() == [1, 2]
                found.value().append(3)


def test_a_word_that_cannot_be_parsed_is_told_each_time(tmp_path):
    for _ in range(2):
        with pytest.raises(OverrideParseException, match="Error parsing override 'd=='"):
            parsed(["d=="])
    assert not kept(tmp_path)
