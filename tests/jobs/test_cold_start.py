"""A bare import, the help and tab completion wait for nothing heavy. The causes are tested here; docs/studies/cold_start.py times them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "nnsight", "numpy", "pandas", "plotly", "scipy", "sklearn", "PIL", "IPython")
SHELL = Path(sys.executable).parent / "scale-interp"


def loaded(code):
    """Which heavy modules a fresh process has loaded after this code, and what it says."""
    code += f"\nimport sys, json; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *said, names = done.stdout.splitlines()
    return json.loads(names), "\n".join(said)


def test_a_bare_import_and_the_command_line_load_nothing_heavy():
    names, _ = loaded("import scale_interp, scale_interp.cli, scale_interp.jobs.info")
    assert names == []


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["runs", "."]])
def test_commands_that_compute_nothing_load_nothing_heavy(arguments, tmp_path):
    code = f"import os; os.chdir({str(tmp_path)!r})\nfrom scale_interp.cli import app\napp({arguments}, standalone_mode=False)"
    names, said = loaded(code)
    assert names == [] and ("Usage" in said or "no runs in" in said)


def test_names_are_listed_without_what_is_behind_them():
    names, said = loaded("import scale_interp as si; print(*dir(si))")
    assert names == [] and {"load", "patch", "HeadMap", "viz", "falsify"} <= set(said.split())


def test_names_of_viz_are_listed_without_torch():
    names, said = loaded("import scale_interp as si; print(*dir(si.viz))")
    assert {"head_heatmap", "write_report", "controls"} <= set(said.split()) and not {"torch", "transformers", "nnsight"} & set(names)


def test_tab_completion_of_a_notebook():
    code = """
import sys
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.run_cell("import scale_interp as si")
for shell.Completer.use_jedi in (True, False):
    for text in ("si.", "si.fal", "si.viz.head_"):
        with provisionalcompleter():
            print(*(c.text.lstrip(".") for c in shell.Completer.completions(text, len(text))))
        print("torch" in sys.modules)"""
    names, said = loaded(code)
    lines = said.splitlines()[-12:]
    assert lines[1::2] == ["False"] * 6 and not {"torch", "transformers", "nnsight"} & set(names)
    for every, some, figures in (lines[:6:2], lines[6::2]):
        assert {"load", "viz", "HeadMap"} <= set(every.split()) and some.split() == ["falsify"]
        assert {"head_heatmap", "head_heatmaps"} <= set(figures.split())


def test_the_shell_completes_commands_and_options():
    def completed(*words):
        asked = {"_SCALE_INTERP_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
        done = subprocess.run([SHELL], env=os.environ | asked, capture_output=True, text=True)
        return done.stdout.split()

    assert {"run", "runs", "report"} <= set(completed("scale-interp", "r"))
    assert {"--n-train", "--n-test"} <= set(completed("scale-interp", "run", "--n-t"))
