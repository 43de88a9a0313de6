"""docs/explorer.md, .json and images: the explorer timed and photographed in headless Chromium.

python -m docs.studies.explorer runs/demo-scenes-relation/scale
"""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Browser, Page, sync_playwright

import scale_interp as si
from scale_interp.core.files import write_bytes, write_json
from scale_interp.core.versions import versions

HERE = Path(__file__).parent
DOCS = HERE.parent
N, MOVES, BURST = 20, 60, 60
HEAD, FACTOR, STRENGTH = (5, 4), 1.8, 0.8
CHROMIUM = "/usr/bin/chromium"
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync"]
WATCH = """() => {
  const bars = document.querySelector('.si-answers');
  window.moved = 0; window.took = []; window.drawn = 0;
  let shown = String(bars.data[1].x);
  document.addEventListener('pointermove', event => { if (event.buttons) window.moved = performance.now(); }, true);
  bars.on('plotly_afterplot', () => {
    const now = String(bars.data[1].x);
    if (now === shown) return;
    shown = now;
    window.drawn += 1;
    window.took.push(performance.now() - window.moved);
  });
}"""


def main(scale: str) -> None:
    images, index = DOCS / "images", mended(scale)
    with served(scale) as address, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        times = measured(opened(browser, address, 1240))
        page = opened(browser, address, 1060)
        shown(page, index)
        page.locator(".si-explorer").screenshot(path=images / "explorer.png")
        browser.close()
    about = {"machine": f"{os.cpu_count()} cores, {platform.machine()}", "versions": versions()}
    write_json(HERE / "explorer.json", times | about)
    write_bytes(DOCS / "explorer.md", page_text(times, about).encode())


def mended(scale: str) -> int:
    """The first question that the base model gets wrong and the edit of the images gets right."""
    explorer = si.viz.explore(si.load("demo"), si.load_questions("scenes/relation", n=N), scale=scale)
    explorer.strength = STRENGTH
    explorer.set(HEAD, FACTOR)
    for explorer.index in range(N):
        answer = explorer.question.answer
        if int(explorer.base.argmax()) != answer and int(explorer.probabilities.argmax()) == answer:
            return explorer.index
    raise SystemExit("no question that the edit mends: give another ScAle")


@contextmanager
def served(scale: str) -> Iterator[str]:
    """The address of the page that `scale-interp explore` serves."""
    command = [sys.executable, "-c", "from scale_interp.cli import main; main()", "explore", "demo", "--n", str(N), "--scale", scale]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        yield server.stdout.readline().split()[1]
    finally:
        server.terminate()
        server.wait()


def opened(browser: Browser, address: str, width: int) -> Page:
    page = browser.new_page(viewport={"width": width, "height": 2000})
    page.goto(address)
    page.wait_for_selector(".si-explorer[data-ready]", timeout=120_000)
    return page


def choose(page: Page) -> None:
    page.get_by_role("combobox", name="Layer").select_option(str(HEAD[0]))
    page.get_by_role("combobox", name="Head", exact=True).select_option(str(HEAD[1]))
    page.get_by_role("slider", name=f"Scale of head {HEAD[0]}.{HEAD[1]}").wait_for()


def shown(page: Page, index: int) -> None:
    """A question with a head scaled and a ScAle faded in, by keyboard."""
    page.get_by_role("combobox", name="Question").select_option(index=index)
    choose(page)
    steps = round((FACTOR - 1) / 0.05), round((1 - STRENGTH) / 0.02)
    for name, key, times in (("Scale of head", "ArrowRight", steps[0]), ("How far", "ArrowLeft", steps[1])):
        page.get_by_role("slider", name=name).focus()
        for _ in range(times):
            page.keyboard.press(key)
    page.wait_for_timeout(2000)


def measured(page: Page) -> dict[str, Any]:
    """Milliseconds from a move of the slider to the bars that follow it, one move at a time and many at once."""
    choose(page)
    handle = page.locator(".si-factor [role=slider]").bounding_box()
    track = page.locator(".si-factor .noUi-base").bounding_box()
    assert handle is not None and track is not None
    x, y = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
    step, left = track["width"] / 80, track["x"]
    page.evaluate(WATCH)
    page.mouse.move(x, y)
    page.mouse.down()
    for move in range(MOVES + 1):
        before = page.evaluate("window.drawn")
        page.mouse.move(left + step * (2 + move % 70), y)
        page.wait_for_function("before => window.drawn > before", arg=before)
    # Without the first, which warms up what follows.
    one = np.array(page.evaluate("window.took")[1:])
    page.wait_for_timeout(500)
    page.evaluate("window.took = []; window.drawn = 0")
    page.mouse.move(left + step * 70, y, steps=BURST)
    page.mouse.up()
    value = page.locator(".si-factor .widget-readout").inner_text()
    page.wait_for_timeout(2000)
    burst = page.evaluate("({drawn: window.drawn, last: window.took.at(-1)})")
    return {
        "moves": len(one),
        "median_ms": float(np.median(one)),
        "p95_ms": float(np.quantile(one, 0.95)),
        "largest_ms": float(one.max()),
        "burst": {"moves": BURST, "drawn": burst["drawn"], "last_ms": burst["last"], "value": float(value)},
    }


def page_text(c: dict[str, Any], about: dict[str, Any]) -> str:
    burst = c["burst"]
    return f"""# The explorer

Choose a head on its map, see where it looks, turn it up or down, and watch the answer move.

```python
import scale_interp as si

vlm = si.load("demo")
explorer = si.viz.explore(vlm, si.load_questions("scenes/relation", n={N}))
explorer
```

in a notebook (`pip install -e ".[notebook]"`), or without one (`pip install -e ".[explore]"`):

    scale-interp explore demo --data scenes/relation --n {N} --scale runs/demo-scenes-relation/scale

![the explorer](images/explorer.png)

*A question that `demo` gets wrong: with head {HEAD[0]}.{HEAD[1]} scaled by {FACTOR}, and a ScAle from `scale-interp run` faded in to
{STRENGTH}, the right answer leads.*

- **Question**: the list, Previous, Next. The image shows the boxes of what is asked about, where they are known.
- **Heads**: by `head_map=` (any HeadMap), else by one gradient pass over the questions. A click on a cell, or Layer and Head, chooses a
  head: the image shows where that head of the unedited model looks, and the slider is its scale, 0 to 4. The column MLP scales a layer's
  MLP.
- **Answers**: the probability of each choice (softmax over the choices' scores), base and edited; ✓ is right.
- **Edited heads and MLPs**: all that differ from 1; several act together. Remove resets the chosen one, Reset all resets all.
- **ScAle**: a folder, or `scale=`; the slider fades it in, s(t) = 1 + t (s - 1). Scales of heads multiply it. Scalars of another model are
  refused where their shape differs, and accepted with a notice where only the name differs.
- **Copy as code**: Python that gives the same numbers, bit for bit on the same machine.

The page reports whatever goes wrong. Every control has a name for screen readers and works by keyboard; the figures follow the page's
dark or light theme (`dark=` fixes it).

## The object

Everything that the page does can be done, and read, without it:

```python
explorer.select((5, 4))
explorer.factor = 1.8
explorer.set((3, None), 0.5)  # the MLP of layer 3
print(explorer.base, explorer.probabilities)
print(explorer.code())
explorer.reset()
```

`explorer.load(folder)`, `explorer.scale`, `explorer.strength`, `explorer.index`, `explorer.factors`, `explorer.edit` (an `si.Edit`),
`explorer.head_map`, `explorer.looking` (attention and patch grid).

## How fast

    python -m docs.studies.explorer runs/demo-scenes-relation/scale

On `demo`, kernel and headless Chromium together on a machine of {about["machine"]}: from a move of the slider to the bars that
follow it, by the browser's clock, median **{c["median_ms"]:.0f} ms**, 95 % below {c["p95_ms"]:.0f} ms ({c["moves"]} moves, the longest
{c["largest_ms"]:.0f} ms). Of {burst["moves"]} moves made as fast as the browser takes them, {burst["drawn"]} were drawn, the last
{burst["last_ms"]:.0f} ms after the final move: what a slider sends while an edit runs is skipped, however large the model, and the
last value is always drawn.

The question's prompt is read once; a move runs its last token alone ([how](methods.md)), one variant beside the clean one. A model whose
edits run by whole passes (PaliGemma) works too, more slowly, and without a map of gradients.

## Beside a running cell

JupyterLab handles widget messages in a separate thread. The explorer queues them behind the running cell instead, so that no two edits
are in the model at once: while a long cell runs, the page waits.

## Who can reach the page

`scale-interp explore` listens on 127.0.0.1 and prints an address with a random token; without the token every page and every kernel channel
is refused (403). The page can move its own widgets and nothing else: voila takes no code from it, the notebook behind it is one fixed
cell, and model, data and folder reach it as JSON. A content security policy keeps the browser from fetching anything elsewhere. The
model is loaded once for every tab that is open; five minutes after a tab is closed, its copy is released. `&theme=dark` at the end of the
address gives dark colours.
"""


if __name__ == "__main__":
    main(sys.argv[1])
