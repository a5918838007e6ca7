"""The page in Chromium: what a reader does with it, and what it answers."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_1samp
from synthetic import mixed, synthetic

from vae_lab.commands import report
from vae_lab.report.page import render

pytest.importorskip("plotly")
api = pytest.importorskip("playwright.sync_api")

pytestmark = pytest.mark.browser

CHARTS = ["heat-chart", "plane-chart", "curves-chart", "active-chart", "kl-chart"]
MANY = {"d": (2, 4, 8, 16, 32), "V": (1, 2, 5, 10), "s2": (0.01, 0.03, 0.1, 0.3, 1.0), "seeds": 5, "points": 120}


@pytest.fixture(scope="session")
def chromium():
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("there is no Chromium")
    with api.sync_playwright() as playwright:
        root = hasattr(os, "geteuid") and os.geteuid() == 0  # whom Chromium's sandbox refuses
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if root else [])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, tmp_path):
    """Opens a page, or a payload's; at the end nothing may have been said on the console, or asked of a network."""
    complaints, contexts = [], []

    def visit(payload, width=1440, height=900, scheme="light", script=None, hash=""):
        path = payload
        if not isinstance(payload, Path):
            path = tmp_path / "report.html"
            path.write_text(render(payload))
        context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        context.set_default_timeout(15000)
        if script is not None:
            context.add_init_script(script)
        page = context.new_page()
        page.on("console", lambda message: message.type in ("error", "warning") and complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.on(
            "request",
            lambda request: request.url.startswith(("file:", "data:", "blob:")) or complaints.append(request.url),
        )
        page.goto(path.as_uri() + hash)
        settled(page)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert complaints == []


def settled(page):
    """Waits until everything is drawn."""
    page.wait_for_selector("html[data-drawn]", state="attached")


def drawn(page, chart):
    """A chart, in view, as it is now."""
    page.locator(f"#{chart}").scroll_into_view_if_needed()
    settled(page)
    assert "js-plotly-plot" in page.locator(f"#{chart}").get_attribute("class")
    return page.locator(f"#{chart}")


def column(page, key):
    """What the table's rows hold under a heading, as numbers; None where a cell is empty."""
    return page.evaluate(
        """key => {
          const heads = [...document.querySelectorAll('#runs thead th')];
          const i = heads.findIndex((head) => head.querySelector(`[data-filter="${key}"]`));
          return [...document.querySelectorAll('#runs tr[data-run]')].map((row) => {
            const cell = row.cells[i];
            const text = cell.dataset.value ?? cell.textContent.replace('−', '-');
            return text === '' ? null : Number(text);
          });
        }""",
        key,
    )


def select_runs(page, *ids):
    for identity in ids:
        page.locator(f'#runs tr[data-run="{identity}"]').click()
    settled(page)


def test_every_section_is_drawn(visit):
    page = visit(synthetic())
    assert page.locator("main section").count() == 10
    for chart in CHARTS:
        drawn(page, chart)
    assert page.locator("#parallel-chart svg g[data-run]").count() == 23
    assert page.locator("#verdicts tbody tr").count() == 23
    assert page.locator("#pictures-grid article").count() == 3
    assert page.locator("#ranking tbody tr").count() == 12
    assert page.locator("#configs tbody tr").count() > 0


def test_a_page_of_nothing_is_quiet(visit):
    payload = synthetic() | {"runs": [], "axes": [], "metrics": [], "protocols": [], "oracles": [], "broken": []}
    page = visit(payload)
    page.locator("#difference").scroll_into_view_if_needed()
    assert page.locator("#shown").text_content() == "0 runs"
    payload = synthetic(d=(2,), V=(1,), s2=(0.1,), seeds=1)  # one run, which failed
    page = visit(payload)
    page.locator("#difference").scroll_into_view_if_needed()
    assert "No run has a score" in page.locator("#best").text_content()


def test_the_best_run_and_its_command(visit):
    payload = synthetic()
    best = max((run for run in payload["runs"] if run["results"]), key=lambda run: run["results"]["test/elbo"])
    page = visit(payload)
    assert page.locator("[data-best]").get_attribute("data-best") == best["id"]
    assert page.locator("#best code").text_content() == best["command"]
    assert page.locator('[data-state="failed"]').text_content() == "1"
    page.locator(".failures summary").click()
    assert payload["runs"][-1]["log"][0] in page.locator(".failures pre").text_content()


def test_the_table_sorts(visit):
    page = visit(synthetic())
    head = page.locator("#runs th", has=page.locator('[data-filter="test/elbo"]'))
    for direction, order in [("descending", lambda x: sorted(x, reverse=True)), ("ascending", sorted)]:
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == direction
        *values, last = column(page, "test/elbo")
        assert last is None  # the failed run comes last either way
        assert values == order(values) and len(values) == 23
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "none"


def test_the_table_filters_by_conditions_and_text(visit):
    page = visit(synthetic())

    def filtered(key, text):
        page.locator(f'[data-filter="{key}"]').fill(text)
        return column(page, key)

    assert set(filtered("d", "8")) == {8}
    assert set(filtered("d", "2,8")) == {2, 8}
    assert set(filtered("d", "!=8")) == {2, 32}
    assert set(filtered("d", "")) == {2, 8, 32}
    assert set(filtered("likelihood.s2", "<0.05")) == {0.01}
    assert set(filtered("likelihood.s2", "0.05..1")) == {0.1}
    filtered("d", ">=8")
    assert page.locator("#shown").text_content() == "8 of 24 runs"  # conditions hold together
    assert page.locator('[data-filter="d"]').get_attribute("aria-invalid") == "false"
    filtered("d", "<x")
    assert page.locator('[data-filter="d"]').get_attribute("aria-invalid") == "true"
    page.locator("#unfilter").click()
    assert page.locator("#shown").text_content() == "24 runs"
    page.locator("#search").fill("failed")
    assert page.locator("#runs tr[data-run]").count() == 1
    page.locator("#search").fill("<script>")
    assert page.locator("#runs tr[data-run]").count() == 1


def test_charts_follow_the_filter(visit):
    page = visit(synthetic())
    page.locator('[data-filter="d"]').fill("8")
    plane = drawn(page, "plane-chart")
    shown = plane.evaluate("e => e.data.filter((t) => t.customdata).flatMap((t) => t.customdata)")
    assert sorted(shown) == sorted(run["id"] for run in synthetic()["runs"] if run["axes"]["d"] == 8)


def test_heat_maps_hold_means_errors_and_counts(visit):
    payload = synthetic(seeds=3)
    page = visit(payload)
    heat = drawn(page, "heat-chart")
    page.locator("#heat-metric").select_option("test/kl")
    page.locator("#heat-x").select_option("objective.V")
    page.locator("#heat-panel").select_option("")
    page.locator('[id="heat-at.likelihood.s2"]').select_option("0.1")
    settled(page)
    heights, labels = heat.evaluate("e => [e.data[0], e.data[1]]")
    assert heights["x"] == [1, 10] and heights["y"] == [2, 8, 32]
    assert heat.evaluate("e => [e.layout.xaxis.type, e.layout.yaxis.type]") == ["log", "log"]
    at = {(x, y): text for x, y, text in zip(labels["x"], labels["y"], labels["text"], strict=True)}
    for (V, d), text in at.items():
        wanted = {"d": d, "objective.V": V, "likelihood.s2": 0.1}
        values = [
            run["results"]["test/kl"]
            for run in payload["runs"]
            if wanted.items() <= run["axes"].items() and run["results"]
        ]
        mean, error, n = text.split("<br>")
        assert n == f"n = {len(values)}"
        assert float(mean.replace("−", "-")) == pytest.approx(np.mean(values), abs=5e-4)
        assert float(error.removeprefix("± ")) == pytest.approx(np.std(values, ddof=1) / len(values) ** 0.5, rel=0.05)


def test_a_chosen_row_is_marked_in_every_chart(visit):
    run = synthetic()["runs"][8]
    page = visit(synthetic())
    select_runs(page, run["id"])
    assert page.locator("#tray strong").text_content() == "1 chosen"
    assert run["command"] in page.locator("#details").text_content()
    sizes = (
        "e => e.data.filter((t) => t.customdata).flatMap((t) => t.customdata.map((id, i) => [id, t.marker.size[i]]))"
    )
    for chart in ("plane-chart", "active-chart"):
        greatest = [identity for identity, size in drawn(page, chart).evaluate(sizes) if size > 10]
        assert greatest == [run["id"]]
    assert drawn(page, "curves-chart").evaluate("e => e.data.filter((t) => t.legendgroup === 'chosen').length") == 1
    assert drawn(page, "kl-chart").evaluate("e => e.layout.shapes.length") == 1
    assert "◆" in "".join(drawn(page, "heat-chart").evaluate("e => e.data.flatMap((t) => t.text ?? [])"))
    assert page.locator("#parallel-chart g.chosen").get_attribute("data-run") == run["id"]
    assert page.locator("#pictures-grid article").get_attribute("data-run") == run["id"]
    page.locator("#tray .chip").click()
    assert page.locator("#tray").is_hidden()


def test_a_clicked_point_chooses_its_row(visit):
    page = visit(synthetic())
    plane = drawn(page, "plane-chart")
    place = """e => {
      const { xaxis, yaxis } = e._fullLayout;
      const trace = e.data.find((t) => t.customdata);
      const box = e.getBoundingClientRect();
      return [box.left + xaxis._offset + xaxis.d2p(trace.x[0]), box.top + yaxis._offset + yaxis.d2p(trace.y[0])];
    }"""
    x, y = plane.evaluate(place)
    page.mouse.move(x, y)
    page.mouse.click(x, y)
    chosen = page.locator('#runs tr[aria-selected="true"]')
    assert chosen.count() == 1


def test_rows_are_chosen_by_keyboard(visit):
    page = visit(synthetic())
    rows = page.locator("#runs tr[data-run]")
    rows.first.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    assert [rows.nth(i).get_attribute("aria-selected") for i in range(3)] == ["true", "true", "false"]
    page.keyboard.press("Space")
    assert rows.nth(1).get_attribute("aria-selected") == "false"


def test_a_line_of_the_parallel_coordinates_chooses_and_an_axis_filters(visit):
    page = visit(synthetic())
    page.locator("#parallel-chart").scroll_into_view_if_needed()
    page.locator("#parallel-chart .hit").first.dispatch_event("click")
    assert page.locator('#runs tr[aria-selected="true"]').count() == 1
    box = page.locator("#parallel-chart .brush").nth(1).bounding_box()  # s2
    x = box["x"] + box["width"] / 2
    page.mouse.move(x, box["y"] + box["height"] - 1)
    page.mouse.down()
    page.mouse.move(x, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    assert set(column(page, "likelihood.s2")) == {0.01}


def test_curves_are_drawn_over_examples_and_by_run(visit):
    payload = synthetic()
    page = visit(payload)
    curves = drawn(page, "curves-chart")
    page.locator("#curves-x").select_option("examples")
    page.locator("#curves-lines").select_option("run")
    page.locator("#curves-metric").select_option("val/kl")
    settled(page)
    found = {}
    for trace in curves.evaluate("e => e.data.filter((t) => t.customdata).map((t) => [t.customdata, t.x, t.y])"):
        for identity, x, y in zip(*trace, strict=True):
            if identity:
                found.setdefault(identity, []).append((x, y))
    for run in payload["runs"][:-1]:
        assert found[run["id"]] == list(zip(run["curves"]["examples"], run["curves"]["values"]["val/kl"], strict=True))


def test_the_means_of_curves_are_those_of_their_seeds(visit):
    payload = synthetic(d=(2,), V=(1,), s2=(0.01, 0.1), seeds=3, hostile=False)
    for run in payload["runs"][::2]:  # other points than the other runs, on the same lines
        curves = run["curves"]
        run["curves"] = {k: v[::3] + v[-1:] for k, v in curves.items() if k != "values"}
        run["curves"]["values"] = {k: v[::3] + v[-1:] for k, v in curves["values"].items()}
    page = visit(payload)
    data = drawn(page, "curves-chart").evaluate("e => e.data.filter((t) => t.customdata).map((t) => [t.x, t.y])")
    for (x, y), s2 in zip(data, (0.01, 0.1), strict=True):
        runs = [run["curves"] for run in payload["runs"] if run["axes"]["likelihood.s2"] == s2]
        points = [point for point in x if point is not None]
        for point, value in zip(points, y, strict=False):
            wanted = [
                np.interp(point, run["epoch"], run["values"]["val/elbo"])
                for run in runs
                if run["epoch"][0] <= point <= run["epoch"][-1]
            ]
            assert value == pytest.approx(np.mean(wanted), rel=1e-9)


def test_a_paired_comparison_is_students(visit):
    payload = synthetic(seeds=5, hostile=False)
    page = visit(payload)
    page.locator("#statistics").scroll_into_view_if_needed()
    for side, s2 in [("a", "0.1"), ("b", "0.01")]:
        page.locator(f'[id="{side}.d"]').select_option("8")
        page.locator(f'[id="{side}.objective.V"]').select_option("1")
        page.locator(f'[id="{side}.likelihood.s2"]').select_option(s2)
    settled(page)
    score = {tuple(run["axes"].values()): run["results"]["test/elbo"] for run in payload["runs"]}
    differences = [score[8, 1, 0.1, seed] - score[8, 1, 0.01, seed] for seed in range(5)]
    interval = ttest_1samp(differences, 0).confidence_interval(0.95)
    answer = page.locator("#comparison .answer")
    wanted = {"mean": np.mean(differences), "low": interval.low, "high": interval.high, "n": 5}
    for name, value in wanted.items():  # the quantile is given to six decimals
        assert float(answer.get_attribute(f"data-{name}")) == pytest.approx(value, abs=1e-5)
    assert "A is better by" in answer.text_content()

    page.locator('[id="a.d"]').select_option("any")  # pairs over d too
    settled(page)
    assert answer.get_attribute("data-n") == "15"
    assert page.locator('[id="b.d"]').input_value() == "any"


def test_scores_under_different_protocols_are_not_ranked_together(visit):
    payload = mixed()
    page = visit(payload)
    best = page.locator("[data-best]")
    assert best.count() == 2  # of each protocol
    assert "preprocessing (raw, binarised)" in page.locator("#best .note").text_content()

    page.locator("#runs th button", has_text="ELBO").first.click()
    rows = page.locator("#runs tbody tr").evaluate_all("rows => rows.map((row) => row.dataset.run ?? null)")
    assert rows.count(None) == 2  # a heading for each
    protocol = {run["id"]: run["protocol"]["test/elbo"] for run in payload["runs"]}
    score = {run["id"]: run["results"]["test/elbo"] for run in payload["runs"]}
    second = rows.index(None, 1)
    for part, number in [(rows[1:second], 0), (rows[second + 1 :], 2)]:
        assert {protocol[identity] for identity in part} == {number}
        assert [score[identity] for identity in part] == sorted((score[i] for i in part), reverse=True)

    page.locator("#statistics").scroll_into_view_if_needed()
    assert page.locator("#ranking table").count() == 2
    page.locator('[id="a.d"]').select_option("2")
    page.locator('[id="b.d"]').select_option("32")
    settled(page)
    assert "preprocessing (raw, binarised)" in page.locator("[data-refused]").text_content()
    assert page.locator("#comparison .answer").count() == 0

    drawn(page, "heat-chart")
    assert page.locator("#heat-note").is_visible()


def test_configurations_of_two_runs(visit):
    runs = synthetic()["runs"]
    page = visit(synthetic())
    select_runs(page, runs[2]["id"], runs[5]["id"])
    page.locator("#difference").scroll_into_view_if_needed()
    differing = {key for key in runs[2]["config"] if runs[2]["config"][key] != runs[5]["config"][key]}
    keys = page.locator("#configs tbody th")
    assert set(keys.all_text_contents()) == differing
    page.locator("#difference-all").check()
    settled(page)
    assert set(keys.all_text_contents()) == set(runs[2]["config"])
    page.locator("#difference-b").select_option(runs[2]["id"])
    page.locator("#difference-all").uncheck()
    settled(page)
    assert "the same" in page.locator("#configs").text_content()


@pytest.mark.parametrize("interface", ["the browser's", "none"])
def test_commands_are_copied(visit, interface):
    script = "Object.defineProperty(navigator, 'clipboard', { value: undefined })" if interface == "none" else None
    payload = synthetic()
    page = visit(payload, script=script)
    button = page.locator("#best [data-copy]").first
    button.click()
    page.locator("#best [data-copy]", has_text="Copied").wait_for()
    page.locator("#search").focus()
    page.keyboard.press("Control+V")
    assert page.locator("#search").input_value() == button.get_attribute("data-copy")
    page.locator("#search").fill("")
    row = page.locator(f'#runs tr[data-run="{payload["runs"][0]["id"]}"]')
    row.locator("[data-copy]").click()
    assert row.get_attribute("aria-selected") == "false"  # copying chooses nothing
    page.locator("#search").focus()
    page.keyboard.press("Control+V")
    assert page.locator("#search").input_value() == payload["runs"][0]["command"]


def test_the_theme_follows_the_reader(visit):
    page = visit(synthetic(), scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    night = page.evaluate(background)
    ink = drawn(page, "plane-chart").evaluate("e => e.layout.font.color")
    page.locator("#theme").click()
    settled(page)
    assert page.evaluate(background) == "rgb(255, 255, 255)" != night
    assert drawn(page, "plane-chart").evaluate("e => e.layout.font.color") != ink
    page.reload()
    assert page.evaluate(background) == "rgb(255, 255, 255)"


def test_what_looks_like_html_is_text(visit):
    page = visit(synthetic())
    for chart in CHARTS:
        drawn(page, chart)
    select_runs(page, synthetic()["runs"][0]["id"])
    assert page.locator("h1").text_content() == "outputs: digits <24 runs>"
    assert page.locator('#runs tr[aria-selected="true"] td').first.text_content() == "<script>alert(1)</script>"
    assert page.locator("#details article h3").text_content() == "<script>alert(1)</script>"
    assert "<img src=x>" in page.locator(".broken").text_content()
    assert page.locator("img[src=x]").count() == 0


def test_a_view_can_be_linked(visit):
    payload = synthetic()
    page = visit(payload)
    select_runs(page, payload["runs"][4]["id"])
    page.locator('[data-filter="d"]').fill("<=8")
    page.locator("#runs th button", has_text="ELBO").first.click()
    drawn(page, "heat-chart")
    page.locator("#heat-metric").select_option("test/kl")
    address = page.evaluate("location.hash")
    again = visit(payload, hash=address)
    assert again.locator('#runs tr[aria-selected="true"]').get_attribute("data-run") == payload["runs"][4]["id"]
    assert column(again, "test/elbo") == column(page, "test/elbo")
    drawn(again, "heat-chart")
    assert again.locator("#heat-metric").input_value() == "test/kl"
    visit(payload, hash="#where.nothing=3&runs=nobody&sort=-what&heat-metric=which")  # of another report: no harm


def test_five_hundred_runs_open_soon(visit, capsys):
    page = visit(synthetic(**MANY))
    ready = page.evaluate("Number(document.documentElement.dataset.ready)")
    for chart in CHARTS:
        drawn(page, chart)
    assert page.locator("#runs tr[data-run]").count() == 500
    chosen = page.evaluate(
        """async () => {
          const start = performance.now();
          document.querySelector('#runs tr[data-run]').click();
          await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
          return performance.now() - start;
        }"""
    )
    with capsys.disabled():
        print(f"\n500 runs: usable after {ready / 1000:.2f} s; a row is chosen in {chosen / 1000:.2f} s")
    assert ready < 20000


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_screenshots(visit, tmp_path, width, scheme):
    """Written to $VAE_LAB_SCREENSHOTS where that is given: to be looked at."""
    folder = Path(os.environ.get("VAE_LAB_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    page = visit(synthetic(), width=width, height=900, scheme=scheme)
    for chart in CHARTS:
        drawn(page, chart)
    page.evaluate("window.scrollTo(0, 0)")
    assert page.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out
    page.screenshot(path=folder / f"report-{width}-{scheme}.png", full_page=True)
    assert (folder / f"report-{width}-{scheme}.png").stat().st_size > 50_000


@pytest.mark.slow
@pytest.mark.xdist_group("swept")
def test_the_page_of_a_real_sweep(visit, swept, tmp_path):
    folder = Path(os.environ.get("VAE_LAB_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    assert report.main([str(swept), f"file={tmp_path / 'swept.html'}"]) == 0
    page = visit(tmp_path / "swept.html")
    rows = page.locator("#runs tr[data-run]")
    assert rows.count() == 24
    heat = drawn(page, "heat-chart").evaluate(
        "e => e.data.filter((t) => t.type === 'heatmap').flatMap((t) => t.z.flat())"
    )
    assert len(heat) == 12 and None not in heat  # all cells of d x V x s2
    lines = drawn(page, "plane-chart").evaluate("e => e.data.filter((t) => t.mode === 'lines').length")
    assert lines == 1  # the exact curve beneath the points
    for chart in CHARTS:
        drawn(page, chart)
    assert page.locator("#pictures-grid img").count() > 0
    assert page.locator("#verdicts tbody tr").count() == 24
    rows.first.click()
    rows.nth(1).click()
    settled(page)
    assert page.locator("#configs tbody tr").count() > 0
    page.evaluate("window.scrollTo(0, 0)")
    page.screenshot(path=folder / "report-swept.png", full_page=True)
