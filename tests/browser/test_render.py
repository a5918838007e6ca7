"""The page as a file: what it holds, and what it must not."""

import json
import re
from html.parser import HTMLParser

import pytest
from synthetic import mixed, synthetic

from vae_lab.report.page import SCRIPTS, TEMPLATES, render

pytest.importorskip("plotly")


class Elements(HTMLParser):
    """The elements of a page: their names, attributes and texts."""

    def __init__(self, text):
        super().__init__()
        self.all = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.all.append([tag, dict(attrs), ""])

    def handle_data(self, data):
        if self.all:
            self.all[-1][2] += data

    def of(self, tag):
        return [(attributes, text) for name, attributes, text in self.all if name == tag]


@pytest.fixture(scope="module")
def page():
    return render(synthetic())


def test_the_payload_is_in_the_page_once_and_whole(page):
    found = [text for attributes, text in Elements(page).of("script") if attributes.get("id") == "payload"]
    assert [json.loads(text) for text in found] == [synthetic()]


def test_what_runs_say_is_text(page):
    """Of all that looks like HTML in the payload nothing has become an element."""
    elements = Elements(page)
    assert len(elements.of("script")) == 3  # data, Plotly, the page's own
    assert not elements.of("img")
    for attributes in (attributes for _, attributes, _ in elements.all):
        assert not [name for name in attributes if name.startswith("on")]
    failed = synthetic()["runs"][-1]
    assert any(text.strip() == "\n".join(failed["log"]) for _, text in elements.of("pre"))
    assert any(text.strip() == failed["error"] for _, text in elements.of("p"))


def test_the_page_loads_nothing(page):
    elements = Elements(page)
    (policy,) = [a["content"] for a, _ in elements.of("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none';") and "http" not in policy
    for _, attributes, _ in elements.all:
        for name in ("src", "href", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    assert not re.search(r"url\(|@import", (TEMPLATES / "style.css").read_text())


def test_plotly_is_in_the_page_once(page):
    assert page.count("* plotly.js v") == 1


def test_every_script_is_read():
    assert sorted(SCRIPTS) == sorted(path.stem for path in (TEMPLATES / "scripts").iterdir())


def test_scripts_hold_no_end_of_a_script():
    for path in (TEMPLATES / "scripts").iterdir():
        assert "</script" not in path.read_text()


def test_each_input_has_a_label(page):
    elements = Elements(page)
    labels = {attributes.get("for") for attributes, _ in elements.of("label")}
    for tag in ("select", "input"):
        assert {attributes["id"] for attributes, _ in elements.of(tag)} <= labels


def test_a_number_that_is_none_is_refused():
    payload = synthetic()
    payload["runs"][0]["results"]["test/elbo"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        render(payload)


def test_five_hundred_runs_fit():
    page = render(mixed(d=(2, 4, 8, 16, 32), V=(1, 2, 5, 10), s2=(0.01, 0.03, 0.1, 0.3, 1.0), seeds=5, points=120))
    assert len(page.encode()) < 15e6
