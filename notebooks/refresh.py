"""Execute the notebooks in place, with outputs that are small and show on a code host: `python notebooks/refresh.py [NAME ...]`.

Figures are interactive for who runs a notebook; here they become pictures (kaleido, and Chrome or Chromium). Progress bars, versions and
times are left out, so that a notebook changes where its numbers do.
"""

from __future__ import annotations

import base64
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parent
FIGURE, PICTURE = "application/vnd.plotly.v1+json", "image/png"
SCALE = 1.5
SHOWN = "shown"
"""The tag of the cell whose picture stands for its notebook in docs/notebooks.md."""


def executed(path: Path, timeout: int = 180) -> NotebookNode:
    """The notebook with the outputs of the running interpreter's kernel, figures as plotly's JSON. Raises CellExecutionError."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=timeout,
            kernel_name="python3",
            coalesce_streams=True,
            record_timing=False,
            resources={"metadata": {"path": folder}},
        )
        # One thread: sums in one order, and no waiting for a core that another process has.
        client.execute(env={**os.environ, "OMP_NUM_THREADS": "1", "PLOTLY_RENDERER": "plotly_mimetype", "TQDM_DISABLE": "1"})
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if FIGURE in output.get("data", {}):
            output.data.pop("text/html", None)  # a page would show this table in place of the figure
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec, "language_info": {"name": "python"}}
    return notebook


def with_pictures(notebook: NotebookNode) -> NotebookNode:
    """The notebook with pictures in place of plotly's JSON."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            figure = output.get("data", {}).pop(FIGURE, None)
            if figure is not None:
                content, width, height = picture(figure)
                output.data[PICTURE] = base64.b64encode(content).decode()
                output.metadata[PICTURE] = {"width": width, "height": height}
    return notebook


def picture(figure: NotebookNode) -> tuple[bytes, int, int]:
    """PNG of a figure, and the width and height to show it in."""
    import plotly.io as pio
    from PIL import Image

    drawn = pio.from_json(json.dumps({"data": figure["data"], "layout": figure["layout"]}), skip_invalid=True)
    image = Image.open(io.BytesIO(drawn.to_image("png", scale=SCALE))).convert("RGB")
    out = io.BytesIO()
    image.save(out, "png", optimize=True)
    return out.getvalue(), round(image.width / SCALE), round(image.height / SCALE)


def shown(notebook: NotebookNode) -> bytes:
    """PNG of the picture that stands for the notebook."""
    (cell,) = (cell for cell in notebook.cells if SHOWN in cell.metadata.get("tags", ()))
    return base64.b64decode(cell.outputs[0].data[PICTURE])


def refresh(names: Iterable[str]) -> None:
    """Execute and rewrite the notebooks whose file names begin with one of the names, and their pictures in docs."""
    for path in sorted(FOLDER.glob("*.ipynb")):
        if path.name.startswith(tuple(names)):
            notebook = with_pictures(executed(path))
            nbformat.validate(notebook)
            nbformat.write(notebook, path)
            (FOLDER.parent / "docs" / "images" / f"notebook_{path.name[:2]}.png").write_bytes(shown(notebook))
            print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    refresh(sys.argv[1:] or [""])
