"""The explorer without a notebook: one page, served by voila to this machine only, behind a random token.

The page can change the app's widgets and nothing else: voila accepts no code from it, and the notebook that it runs is ours.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nbformat
from jupyter_server.auth.identity import PasswordIdentityProvider
from tornado.web import HTTPError
from traitlets.config import Config
from voila.app import Voila

from ..errors import ModelError
from .served_page import CELL, SETTINGS

HOST = "127.0.0.1"
NAME = "scale_interp"
IDLE = 300
"""Seconds after which the model of a closed page is released."""
TEMPLATE = """{%- extends 'voila/templates/lab/index.html.j2' -%}
{% import "spinner.macro.html.j2" as spinner %}
{%- block notebook_css -%}
{{ resources.include_js("static/voila-style.js") }}
{{ spinner.css() }}
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
  body { background: var(--jp-layout-color0); margin: 0; padding: 8px 12px; overflow: auto; }
  .jp-Cell { padding: 0; }
  .jp-OutputPrompt, .jp-OutputArea-prompt, .jp-InputPrompt { display: none; }
</style>
{{ super.super() }}
{%- endblock notebook_css -%}
"""
"""voila's own page without the style sheets that it would fetch from elsewhere."""


class TokenOnly(PasswordIdentityProvider):
    """Refuses requests without the token, where Jupyter would show a login form."""

    async def get_user(self, handler: Any) -> Any:
        user = await super().get_user(handler)  # type: ignore[misc]
        if user is None:
            raise HTTPError(403, "the token is missing: open the whole address that `scale-interp explore` printed")
        return user


def serve(asked: Mapping[str, Any], scale: Path | None, port: int | None, say: Callable[[str], None]) -> None:
    """Serve the page until interrupted.

    Args:
        asked: model and data, names that `si.load` and `si.load_questions` take, with their keywords: loading, reading and n.
        scale: the folder of a ScAle to fade in.
        port: the port on this machine; None for a free one.
        say: called with the page's address.

    Raises:
        ModelError: the port is in use.
    """
    asked = {**asked, "scale": None if scale is None else str(scale), "folder": str(Path.cwd())}
    port = port or _free()
    _require_free(port)
    token = secrets.token_urlsafe(24)
    with tempfile.TemporaryDirectory(prefix="scale-interp-") as made:
        folder = Path(made)
        notebook = _write(folder)
        os.environ[SETTINGS] = json.dumps(asked)
        os.environ["JUPYTER_PATH"] = os.pathsep.join([made, *filter(None, [os.environ.get("JUPYTER_PATH")])])
        app = Voila(
            ip=HOST,
            port=port,
            port_retries=0,
            token=token,
            open_browser=False,
            notebook_path=str(notebook),
            root_dir=made,
            config_file_paths=[],
            identity_provider_class=TokenOnly,
            tornado_settings={"headers": {"Content-Security-Policy": _policy(port)}},
            log_level=logging.WARNING,
            config=Config(
                VoilaConfiguration={"template": NAME, "allow_theme_override": "YES", "allow_template_override": "NO"},
                MappingKernelManager={"cull_idle_timeout": IDLE, "cull_interval": 60},
            ),
        )
        app.initialize([])
        say(f"http://{HOST}:{port}/?token={token}")
        app.start()


def _write(folder: Path) -> Path:
    """Write the notebook, its kernel (this Python) and the template to where Jupyter looks for them."""
    kernel = {"argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], "display_name": NAME, "language": "python"}
    template = folder / "voila" / "templates" / NAME
    files = {
        folder / "kernels" / NAME / "kernel.json": json.dumps(kernel),
        template / "conf.json": json.dumps({"base_template": "lab"}),
        template / "index.html.j2": TEMPLATE,
    }
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    spec = {"kernelspec": {"name": NAME, "display_name": NAME, "language": "python"}}
    notebook = folder / "explorer.ipynb"
    nbformat.write(nbformat.v4.new_notebook(metadata=spec, cells=[nbformat.v4.new_code_cell(CELL)]), notebook)
    return notebook


def _policy(port: int) -> str:
    """Nothing is fetched from elsewhere, and no other page may embed this one."""
    return (
        "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
        f"connect-src 'self' ws://{HOST}:{port} data: blob:; frame-ancestors 'none'"
    )


def _free() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ModelError(f"port {port} of {HOST} cannot be used ({error.strerror}): give another with --port, or none") from error
