"""Optional packages: their lack is named, and the zoo loads with and without torchvision."""

import subprocess
import sys
from pathlib import Path

import pytest

import scale_interp as si
from scale_interp.errors import ModelError
from scale_interp.models.missing_package import package_of

load_module = sys.modules["scale_interp.models.load"]

FUNCTIONAL = """
import torch
from torch.nn.functional import interpolate
def resize(image, size, interpolation=None, antialias=True):
    wide = image.float() if image.ndim == 4 else image.float()[None]
    found = interpolate(wide, size=tuple(size), mode="bilinear", antialias=True).to(image.dtype)
    return found if image.ndim == 4 else found[0]
def pil_to_tensor(image):
    import numpy
    return torch.from_numpy(numpy.array(image)).permute(2, 0, 1).contiguous()
def normalize(image, mean, std, inplace=False):
    mean, std = (torch.as_tensor(x, dtype=image.dtype)[:, None, None] for x in (mean, std))
    return (image - mean) / std
def center_crop(image, size):
    top, left = (image.shape[-2] - size[0]) // 2, (image.shape[-1] - size[1]) // 2
    return image[..., top : top + size[0], left : left + size[1]]
def pad(image, padding, fill=0, padding_mode="constant"):
    return torch.nn.functional.pad(image, (padding[0], padding[2], padding[1], padding[3]), value=fill)
"""
MODES = """
import enum
class InterpolationMode(enum.Enum):
    NEAREST = "nearest"; NEAREST_EXACT = "nearest-exact"; BILINEAR = "bilinear"; BICUBIC = "bicubic"
    BOX = "box"; HAMMING = "hamming"; LANCZOS = "lanczos"
"""
LOADS = """
import sys, warnings, transformers.utils
warnings.simplefilter("ignore")
assert transformers.utils.is_torchvision_available() is (sys.argv[1] == "with")
import scale_interp as si
from PIL import Image
question = si.Question("Where is the red circle?", ("left", "right"), 0, image=Image.new("RGB", (60, 40), "red"))
for name in sys.argv[2:]:
    vlm = si.load(name)
    print(name, type(vlm.processor).__name__, float(si.run_edits(vlm, question).isfinite().all()))
"""


def stand_in(folder):
    """A package that transformers takes for torchvision: the real one needs a torch that it was built for."""
    package = folder / "torchvision"
    (package / "transforms" / "v2").mkdir(parents=True)
    (package / "__init__.py").write_text("__version__ = '0.29.0'\nfrom . import transforms\n")
    (package / "io.py").write_text("")
    (package / "transforms" / "__init__.py").write_text(MODES + "from . import functional, v2\n")
    (package / "transforms" / "functional.py").write_text(FUNCTIONAL + "from . import InterpolationMode\n")
    (package / "transforms" / "v2" / "__init__.py").write_text("from . import functional\nfrom .. import InterpolationMode\n")
    (package / "transforms" / "v2" / "functional.py").write_text(FUNCTIONAL + "from .. import InterpolationMode\n")
    about = folder / "torchvision-0.29.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.29.0\n")
    return folder


def loaded(with_torchvision, folder, names):
    path = [str(Path(si.__file__).parents[1]), *([str(stand_in(folder))] if with_torchvision else [])]
    code = f"import sys; sys.path[:0] = {path!r}\n{LOADS}"
    given = [sys.executable, "-c", code, "with" if with_torchvision else "without", *names]
    done = subprocess.run(given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [line.split() for line in done.stdout.splitlines()]


WITHOUT_VIDEO = ("llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "smolvlm")


@pytest.mark.full
def test_families_of_videos_load_beside_torchvision(tmp_path):
    names = [f"tiny-random/{name}" for name in WITHOUT_VIDEO]
    found = loaded(True, tmp_path, names)
    assert [(name, scores) for name, _, scores in found] == [(name, "1.0") for name in names]


@pytest.mark.parametrize(
    ("error", "package"),
    [
        (ImportError("Package `num2words` is required to run SmolVLM processor. Install it with `pip install num2words`."), "num2words"),
        (ImportError("\nPixtralProcessor requires the Torchvision library but it was not found in your environment."), "torchvision"),
        (ModuleNotFoundError("No module named 'timm.models'", name="timm.models"), "timm"),
        (ImportError("apply_chat_template requires jinja2 to be installed. Please install it using `pip install -U jinja2`."), "jinja2"),
        (ModuleNotFoundError("No module named 'PIL'", name="PIL"), "pillow"),
        (ImportError("dlopen failed"), None),
    ],
)
def test_errors_name_the_package_to_install(error, package):
    assert package_of(error) == package


@pytest.mark.parametrize("package", ["num2words", "torchvision", "timm", "sentencepiece"])
@pytest.mark.parametrize("place", ["folder", "open_checkpoint"])
def test_a_missing_package_anywhere_in_load_is_a_model_error(monkeypatch, package, place):
    def fails(*_, **__):
        try:
            raise ImportError(f"it requires the {package} library; `pip install {package}`")
        except ImportError as error:
            raise ValueError("no processor") from error

    monkeypatch.setattr(load_module.zoo if place == "folder" else load_module, place, fails)
    with pytest.raises(ModelError, match=rf"tiny-random/smolvlm cannot be loaded: .*{package}.*install it: pip install {package}"):
        si.load("tiny-random/smolvlm")


def test_smolvlm_without_num2words(monkeypatch):
    from transformers.models.smolvlm import processing_smolvlm

    monkeypatch.setattr(processing_smolvlm, "num2words", None)
    with pytest.raises(ModelError, match="pip install num2words"):
        si.load("tiny-random/smolvlm")


def test_a_pixtral_processor_without_torchvision(tmp_path):
    vlm = si.load("tiny-random/llava")
    vlm.hf_model.save_pretrained(tmp_path)
    vlm.processor.save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    path.write_text(path.read_text().replace("LlavaProcessor", "PixtralProcessor"))
    with pytest.raises(ModelError, match="pip install torchvision"):
        si.load(tmp_path)


def test_a_template_without_its_library(monkeypatch):
    def fails(*_, **__):
        raise ImportError("apply_chat_template requires jinja2 to be installed. Please install it using `pip install jinja2`.")

    monkeypatch.setattr("transformers.ProcessorMixin.apply_chat_template", fails)
    with pytest.raises(ModelError, match="pip install jinja2"):
        si.load("tiny-random/llava")


def test_other_errors_stay_what_they_are():
    with pytest.raises(ModelError, match="no tiny model"):
        si.load("tiny-random/lava")
