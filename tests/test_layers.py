"""Layers import only lower ones, and every public name is one object wherever it is taken from."""

import inspect
import pickle
import sys
from importlib import import_module
from pathlib import Path

import pytest

import scale_interp as si
from scale_interp.core.arguments import AtLeast, OwnCheck, Raises, checked, options
from scale_interp.core.names import public_names
from scale_interp.errors import ArgumentError, EditError
from scale_interp.interventions.engine import Path as EnginePath
from scale_interp.models.load import load

ROOT = Path(si.__file__).parent


def test_layers_import_only_lower_ones_and_no_package_has_a_circle(monkeypatch):
    linter = pytest.importorskip("importlinter.cli")
    monkeypatch.chdir(ROOT.parent)
    monkeypatch.syspath_prepend(str(ROOT.parent))
    assert linter.lint_imports(config_filename="pyproject.toml", no_cache=True) == 0


@pytest.mark.parametrize("layer", si.LAYERS)
def test_a_public_name_is_the_same_object_in_its_layer_and_where_it_is_written(layer):
    package = import_module(f"scale_interp.{layer}")
    names = public_names(package.__file__)
    assert names and set(names) <= set(si.__all__)
    for name in names:
        found = getattr(si, name)
        assert found is getattr(package, name)
        if inspect.isfunction(found) or inspect.isclass(found):
            assert found is getattr(sys.modules[found.__module__], name)
            assert found.__doc__ and inspect.signature(found).parameters is not None


def test_a_checked_function_refuses_from_wherever_it_is_imported():
    from scale_interp.attribution.patching import patch

    assert patch is si.patch
    with pytest.raises(ArgumentError, match="did you mean 'pairs'"):
        patch(vlm=None, pairsx=[])


def test_markers_are_read_from_the_signature():
    assert options(EnginePath) == ("auto", "packed", "reference")

    from typing import Annotated, Literal

    @checked
    def asked(a: Annotated[int, AtLeast(2)], b: Annotated[Literal["x", "y"], Raises(EditError)] = "x", c: Annotated[int, OwnCheck()] = 0):
        return a, b, c

    assert asked(2, "y", "anything") == (2, "y", "anything")
    with pytest.raises(ArgumentError, match=r"asked\(a=1\): below 2; give 2 or more"):
        asked(1)
    with pytest.raises(EditError, match="b 'z': choose 'x' or 'y'"):
        asked(2, "z")


def test_a_loaded_model_hands_over_how_it_is_reopened(vlm):
    again = pickle.loads(pickle.dumps(vlm.reopen))
    assert again.func is load and again.args[0] == "demo"
    found = again()
    assert found.fingerprint == vlm.fingerprint and found.report is None and found.reopen is not None
