"""The pages of a run and of two runs, in a real browser without a network: nothing is fetched, nothing fails, all can be read."""

import shutil

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from scale_interp import cli
from scale_interp.attribution import HeadMap
from scale_interp.core import statistics
from scale_interp.core.files import read_json, write_json
from scale_interp.core.tensors import read_tensors, write_tensors
from scale_interp.errors import FileError
from scale_interp.jobs.run.run import MAPS, SCORES, Run
from scale_interp.jobs.two_runs import compare_runs
from tests.support.lab_server import CHROMIUM, QUIET
from tests.support.small_run import SMALL

PHONE, DESKTOP = (390, 844), (1366, 900)
DRAWN = "() => document.querySelectorAll('.figure .main-svg').length >= document.querySelectorAll('.figure').length"
WIDER = """() => [...document.querySelectorAll('main, main > *, section > *, .cards > *')]
  .filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.className || e.tagName)"""
CUT = """() => [...document.querySelectorAll('.figure')].filter(panel => {
  const drawn = panel.querySelector('.main-svg').getBoundingClientRect(), out = panel.getBoundingClientRect();
  return drawn.width < 200 || drawn.height < 150 || drawn.left < out.left - 1 || drawn.bottom > out.bottom + 1
    || (drawn.right > out.right + 1 && panel.scrollWidth < drawn.width);
}).map(panel => panel.ariaLabel)"""
OVERLAPS = """() => [...document.querySelectorAll('.figure')].flatMap(panel => {
  const texts = [...panel.querySelectorAll('svg text')].filter(t => t.textContent.trim());
  const words = texts.map(t => [t.textContent, t.getBoundingClientRect()]);
  const both = (a, b, low, high) => Math.min(a[high], b[high]) - Math.max(a[low], b[low]);
  const cross = (a, b) => both(a, b, 'left', 'right') > 2 && both(a, b, 'top', 'bottom') > 3;
  return words.flatMap(([a, x], i) => words.slice(i + 1).filter(([b, y]) => cross(x, y)).map(([b]) => `${panel.ariaLabel}: ${a} / ${b}`));
})"""


@pytest.fixture(scope="module")
def folder(first_run, tmp_path_factory):
    _, untouched, _ = first_run
    return shutil.copytree(untouched, tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="module")
def other(folder, tmp_path_factory):
    """The run again as if another model had been asked: its first three base answers turned round, its patching scores doubled."""
    path = altered(folder, tmp_path_factory.mktemp("other") / "run", model="demo-healthy")
    tensors, _ = read_tensors(path / "scores.safetensors", SCORES)
    tensors["asked/base"][:3] *= -1
    write_tensors(path / "scores.safetensors", SCORES, tensors, {})
    summary = read_json(path / "summary.json")
    summary["base"]["accuracy"] = float(right(path, "base").mean())
    write_json(path / "summary.json", summary)
    m = HeadMap.load(path / "head_maps" / "patch.safetensors")
    HeadMap(m.method, m.unit, 2 * m.per_question, m.groups, m.provenance).save(path / "head_maps" / "patch.safetensors")
    return path


def altered(folder, path, **settings):
    """A copy without checksums, with other settings."""
    shutil.copytree(folder, path)
    (path / "manifest.json").unlink()
    made = read_json(path / "settings.json")
    write_json(path / "settings.json", made | {"settings": made["settings"] | settings})
    return path


def right(path, fit):
    tensors, _ = read_tensors(path / "scores.safetensors", SCORES)
    questions = Run.existing(path).test
    return np.array([float(s.argmax() == q.answer) for s, q in zip(tensors[f"asked/{fit}"], questions, strict=True)])


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    if not CHROMIUM.exists():
        pytest.skip(f"no {CHROMIUM}")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=str(CHROMIUM), args=QUIET)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(folder, other):
    done = CliRunner().invoke(cli.app, ["compare-runs", str(folder), str(other), "--out", str(folder / "two.html")])
    assert done.exit_code == 0, done.output
    return {"run": folder / "report.html", "two runs": folder / "two.html", "said": done.output}


@pytest.fixture(params=[(PHONE, "dark"), (DESKTOP, "light")], ids=["phone, dark", "desktop, light"])
def opened(request, browser):
    (width, height), scheme = request.param
    finger = (width, height) == PHONE
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, is_mobile=finger, has_touch=finger)
    context.set_offline(True)
    wrong = []
    context.route("**/*", lambda route: route.continue_() if own(route.request.url) else (wrong.append(route.request.url), route.abort()))
    page = context.new_page()
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda asked: wrong.append(asked.url))
    yield page, wrong, scheme
    context.close()


def own(url):
    return url.startswith(("file:", "data:", "blob:"))


def swipe(page, start, way):
    """Move a finger over the page."""
    touch = page.context.new_cdp_session(page)
    for step in range(11):
        at = [{"x": start[0] + way[0] * step / 10, "y": start[1] + way[1] * step / 10}]
        touch.send("Input.dispatchTouchEvent", {"type": "touchMove" if step else "touchStart", "touchPoints": at})
        page.wait_for_timeout(16)
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait_for_timeout(200)


@pytest.mark.full
@pytest.mark.parametrize(("name", "figures"), [("run", 9), ("two runs", 3)])
def test_the_page_in_a_browser(opened, pages, name, figures):
    page, wrong, scheme = opened
    page.goto(pages[name].as_uri())
    page.wait_for_function(DRAWN)
    assert wrong == []
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth") and page.evaluate(WIDER) == []
    assert page.evaluate(CUT) == [] and page.evaluate(OVERLAPS) == []
    assert page.locator(".figure").count() >= figures
    paper = page.locator(".figure").first.evaluate("e => getComputedStyle(e.querySelector('.main-svg')).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 30)"}[scheme]
    if page.viewport_size["width"] == PHONE[0]:
        panel = page.locator(".figure").nth(1)
        panel.evaluate("e => e.scrollIntoView({block: 'center'})")
        middle = (300, panel.bounding_box()["y"] + panel.bounding_box()["height"] / 2)
        swipe(page, middle, (-200, 0))
        assert panel.evaluate("e => e.scrollLeft") > 100
        before = page.evaluate("scrollY")
        swipe(page, middle, (0, -150))
        assert page.evaluate("scrollY") > before + 75
    if scheme == "light":
        page.emulate_media(color_scheme="dark")
        page.wait_for_function("() => getComputedStyle(document.querySelector('.figure .main-svg')).backgroundColor == 'rgb(21, 24, 30)'")
        assert wrong == []


def test_the_page_says_what_it_is_of(folder):
    page = (folder / "report.html").read_text()
    assert len(page.encode()) < 8e6 and page.count("* plotly.js v") == 1
    made, summary = read_json(folder / "settings.json"), read_json(folder / "summary.json")
    hashes = [made["model"]["fingerprint"], *(found["content_hash"] for found in made["data"].values())]
    assert all(f">{mark}</td>" in page for mark in hashes)
    assert all(version in page for version in made["versions"].values())
    assert summary["falsification"]["all"]["verdict"].split(".")[0] in page and made["command"] in page
    counts = [f"{kind}: " for kind in ("Still wrong", "Broken by the scalars", "Repaired by the scalars")]
    assert all(page.count(count) == 1 for count in counts)
    cells = page[page.index("chosen heads") :]
    for layer, head in summary["top_heads"]:
        assert f'<td class="number">{layer}</td><td class="number">{head}</td>' in cells


def test_two_runs_side_by_side(folder, other, pages):
    found = compare_runs(folder, other)
    assert found.settings["setting"].tolist() == ["settings model"] and found.left_out == {} and found.questions == SMALL.n_test
    rows = found.answers.set_index("fit")
    mine, theirs = right(folder, "base"), right(other, "base")
    assert (mine != theirs).any()
    d = statistics.paired_difference(theirs, mine, np.arange(SMALL.n_test))
    base = rows.loc["base"]
    assert (base["difference"], base["difference_low"], base["difference_high"]) == pytest.approx((d.mean, d.low, d.high))
    assert (base["accuracy_1"], base["accuracy_2"]) == pytest.approx((mine.mean(), theirs.mean()))
    same = rows.loc["ScAle, top heads"]
    assert same["difference"] == 0 and same["gain_difference"] == pytest.approx(-d.mean)
    agreement = found.agreement.set_index("of")
    assert agreement.loc["patch", "spearman"] == 1 and agreement.loc["patch", "shared"] == agreement.loc["patch", "top"] == SMALL.top
    assert len(agreement) == len(MAPS) + 2
    assert "settings model" in pages["said"] and f"{d.mean:+.3f}" in pages["said"] and "survive" in pages["said"]
    page = pages["two runs"].read_text()
    assert page.count("* plotly.js v") == 1 and len(page.encode()) < 8e6


def test_what_cannot_be_compared_is_left_out(folder, tmp_path):
    smaller = altered(folder, tmp_path / "smaller")
    for method in MAPS:
        m = HeadMap.load(smaller / "head_maps" / f"{method}.safetensors")
        HeadMap(m.method, m.unit, m.per_question[:, :2], m.groups, m.provenance).save(smaller / "head_maps" / f"{method}.safetensors")
    found = compare_runs(folder, smaller)
    assert "6 x 8 and 2 x 8 heads" in found.left_out["agreement of heads"] and len(found.agreement) == 0 and found.questions == SMALL.n_test
    reseeded = compare_runs(folder, altered(folder, tmp_path / "reseeded", seed=1))
    assert "no longer those" in reseeded.left_out["paired differences"] and reseeded.questions == 0
    assert "difference" not in reseeded.answers and reseeded.answers["gain_1"].equals(reseeded.answers["gain_2"])
    assert len(reseeded.agreement) == len(MAPS) + 2 and any("paired differences" in note for note in reseeded.notes)


def test_constant_scalars_have_no_rank_and_no_top_heads(folder, tmp_path):
    still = altered(folder, tmp_path / "still")
    scale = Run.existing(still)._scales_in(["all"])["all"]
    scale.scalars.copy_(torch.ones_like(scale.scalars))
    scale.save_pretrained(still / "scale")
    row = compare_runs(folder, still).agreement.set_index("of").loc["scalars"]
    assert np.isnan(row["spearman"]) and np.isnan(row["shared"])


def test_folders_that_are_no_finished_runs(folder, tmp_path):
    with pytest.raises(FileError, match="is not a run"):
        compare_runs(folder, tmp_path)
    with pytest.raises(FileError, match="one folder"):
        compare_runs(folder, folder)
    unfinished = altered(folder, tmp_path / "unfinished")
    (unfinished / "summary.json").unlink()
    with pytest.raises(FileError, match="not finished: `scale-interp report"):
        compare_runs(folder, unfinished)
    shutil.copytree(folder, tmp_path / "damaged")
    with (tmp_path / "damaged" / "head_maps" / "zero.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(FileError, match=r"zero\.safetensors is damaged: `scale-interp report"):
        compare_runs(folder, tmp_path / "damaged")
    wrong = CliRunner().invoke(cli.app, ["compare-runs", str(folder), str(tmp_path), "--out", "page.txt"])
    assert isinstance(wrong.exception, FileError) and "ends in .html" in str(wrong.exception)
