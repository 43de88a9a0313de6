"""A JupyterLab of its own for a test: on loopback, behind a token, with nothing of the user's in it."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

CHROMIUM = Path("/usr/bin/chromium")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TOKEN = "for-this-test-alone"


@contextmanager
def jupyter_lab(folder, cells):
    """The address of a notebook with these cells in a running JupyterLab."""
    notebook = {"cells": [_cell(i, text) for i, text in enumerate(cells)], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    notebook["metadata"]["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    (folder / "explorer.ipynb").write_text(json.dumps(notebook))
    port = free_port()
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.root_dir": folder,
        "ServerApp.allow_root": True,
        "IdentityProvider.token": TOKEN,
        "LabApp.extension_manager": "readonly",
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        "LabApp.news_url": None,
    }
    own = {f"JUPYTER_{kind}_DIR": str(folder / f".{kind.lower()}") for kind in ("CONFIG", "DATA", "RUNTIME")} | {
        "IPYTHONDIR": str(folder / ".ipython")
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", *(f"--{name}={value}" for name, value in options.items())]
    with open(folder / "server.log", "w") as log:
        server = subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=log, cwd=folder)
    try:
        wait_until_up(f"http://127.0.0.1:{port}/api?token={TOKEN}", server)
        yield f"http://127.0.0.1:{port}/lab/tree/explorer.ipynb?token={TOKEN}"
    finally:
        server.terminate()
        server.wait()


def _cell(number, text):
    return {"cell_type": "code", "id": f"c{number}", "source": text, "metadata": {}, "outputs": [], "execution_count": None}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_up(address, server):
    while True:
        assert server.poll() is None, "the server ended"
        try:
            return urllib.request.urlopen(address).status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            time.sleep(0.2)
