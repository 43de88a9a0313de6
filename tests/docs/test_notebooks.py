"""Every notebook runs, and what is committed of it is what it gives now: small, without paths, and with the same numbers."""

import io
import re
from base64 import b64decode
from html.parser import HTMLParser

import nbformat
import pytest
import refresh
from PIL import Image

from tests.support import ROOT

FOLDER = ROOT / "notebooks"

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
KINDS = {"text/plain", "text/html", refresh.PICTURE}
OURS = 3 * 2**20
"""All notebooks together, in bytes."""
HOME = re.compile(r"/(?:home|root|tmp|work|Users|mnt|var|opt|usr)/|[A-Z]:\\")
HASH = re.compile(r"\b[0-9a-f]{12,64}\b")
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
SLACK = 0.03
"""Of a number with decimals, on another machine: rounding may change a few answers of 200, and an interval with them."""

named = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


class Words(HTMLParser):
    """The text of a piece of HTML."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_data(self, data):
        self.found.append(data)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(output):
    """What an output shows; a figure is committed as a picture."""
    return {refresh.PICTURE if kind == refresh.FIGURE else kind for kind in output.get("data", ())} or {output.output_type}


def text(output):
    """What an output says in words and numbers, without hashes: these name versions, too."""
    data = output.get("data", {"text/plain": output.get("text", "")})
    words = Words()
    words.feed(data.get("text/html", ""))
    return HASH.sub("#", " ".join((data.get("text/plain", "") + " ".join(words.found)).split()))


def same(a, b):
    """Equal words, equal whole numbers, and other numbers that are near."""
    if NUMBER.sub("0", a) != NUMBER.sub("0", b):
        return False
    pairs = zip(NUMBER.findall(a), NUMBER.findall(b), strict=True)
    return all(x == y or (any("." in n or "e" in n for n in (x, y)) and abs(float(x) - float(y)) <= SLACK) for x, y in pairs)


def test_comparison_sees_a_difference():
    assert same("top (4, 3) +0.227, p = 5e-08", "top (4, 3) +0.229, p = 6e-08")
    assert not same("top (4, 3) +0.227", "top (4, 2) +0.227")
    assert not same("gain +0.227", "gain +0.327")
    assert not same("survives", "does not survive")


def test_there_are_seven_and_they_are_small():
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05", "06", "07"]
    assert sum(path.stat().st_size for path in NOTEBOOKS) < OURS


@named
def test_committed(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3" and "widgets" not in notebook.metadata
    assert notebook.cells[0].cell_type == notebook.cells[-1].cell_type == "markdown"  # from a question to what was found
    assert notebook.cells[-1].source.startswith("## What was found")
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))
    for cell in notebook.cells:
        assert not HOME.search(cell.source), f"an absolute path in cell {cell.id}"
        assert "execution" not in cell.metadata
        for output in cell.get("outputs", []):
            assert output.output_type != "error" and output.get("name") != "stderr", f"cell {cell.id}"
            assert not output.get("data") or set(output.data) <= KINDS, f"cell {cell.id}"
            assert not HOME.search(text(output)), f"an absolute path below cell {cell.id}"
            if refresh.PICTURE in output.get("data", ()):
                assert Image.open(io.BytesIO(b64decode(output.data[refresh.PICTURE]))).width > 300


@named
def test_links_lead_somewhere(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)#]+)", cell.source):
                assert (FOLDER / target).exists(), f"cell {cell.id}: {target}"


@pytest.mark.full
@named
def test_runs_to_the_committed_numbers(path):
    committed, now = nbformat.read(path, as_version=4), refresh.executed(path)
    for old, new in zip(code_cells(committed), code_cells(now), strict=True):
        assert [kinds(output) for output in old.outputs] == [kinds(output) for output in new.outputs], f"cell {old.id}"
        for before, after in zip(old.outputs, new.outputs, strict=True):
            assert same(text(before), text(after)), f"cell {old.id}:\n{text(before)}\nis now\n{text(after)}"
