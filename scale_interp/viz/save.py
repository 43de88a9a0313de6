"""A figure as a file: a self-contained page, or an image."""

from __future__ import annotations

from pathlib import Path

import plotly.graph_objects as go

from ..errors import FileError

IMAGE_FORMATS = (".png", ".svg", ".pdf", ".jpg", ".webp")


def require_suffix(path: str | Path) -> Path:
    """Check the ending of a figure's path before a long computation begins.

    Returns:
        The path.

    Raises:
        FileError: a figure cannot be written in that format.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", *IMAGE_FORMATS):
        raise FileError(f"figure {path}: name a file that ends in .html, {', '.join(IMAGE_FORMATS[:-1])} or {IMAGE_FORMATS[-1]}")
    return path


def require_page(path: str | Path) -> Path:
    """Check that a page's path ends in .html.

    Returns:
        The path.

    Raises:
        FileError: it does not.
    """
    path = Path(path)
    if path.suffix.lower() != ".html":
        raise FileError(f"page {path}: name a file that ends in .html")
    return path


def save_figure(figure: go.Figure, path: str | Path, *, scale: float = 2.0) -> None:
    """Write a figure in the format that the path's ending names.

    Args:
        figure: the figure.
        path: .html for a page with plotly inside, which needs no network; .png, .svg, .pdf and so on for an image.
        scale: pixels of the image per pixel of the figure.

    Raises:
        FileError: the ending is unknown, or kaleido or Chrome (Chromium), which images need, is missing.

    >>> import tempfile
    >>> save_figure(go.Figure(), f"{tempfile.mkdtemp()}/empty.html")
    """
    # Imported here: this module would make `import scale_interp.viz` wait for torch.
    from ..core.files import write_bytes

    path = require_suffix(path)
    if path.suffix.lower() == ".html":
        write_bytes(path, figure.to_html(include_plotlyjs=True, div_id="figure").encode())
        return
    try:
        content = figure.to_image(path.suffix.lower().removeprefix("."), scale=scale)
    except (RuntimeError, ValueError) as error:
        raise FileError(_remedy(path, error)) from error
    write_bytes(path, content)


def _remedy(path: Path, error: Exception) -> str:
    said, other = str(error), f"or write {path.with_suffix('.html').name}, which needs neither"
    if "Chrome" in said:
        return f"figure {path}: an image needs Chrome or Chromium, and none was found: install one, run plotly_get_chrome, {other}"
    if "aleido" in said:
        return f'figure {path}: an image needs kaleido: pip install "scale-interp[notebook]", {other}'
    return f"figure {path}: plotly cannot draw it ({said.strip().splitlines()[0]})"
