"""Optional packages: their lack is named, and the zoo loads with and without torchvision."""

import subprocess
import sys
from pathlib import Path

import pytest

import scale_interp as si
from scale_interp.errors import ModelError
from scale_interp.models.missing_package import package_of
from tests.support.zoo_models import RECENT

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
    fill = fill[0] if isinstance(fill, list) else fill
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
TILES = """
import numpy, sys, transformers
from PIL import Image
from scale_interp.models.zoo import images
made = {"Lfm2Vl": {"encoder_patch_size": 14, "tile_size": 56, "min_tiles": 2, "max_tiles": 4, "min_image_tokens": 2,
                   "max_image_tokens": 6, "max_pixels_tolerance": 1.0},
        "Llama4": {"size": {"height": 56, "width": 56}, "max_patches": 3}}
for family, options in made.items():
    own = getattr(transformers, f"{family}ImageProcessor")(**options)
    ours = getattr(images, f"{family}Images")(**options)
    asked = {"return_row_col_info": True} if family == "Lfm2Vl" else {}
    for size in ((64, 90), (150, 50), (20, 20), (31, 200), (400, 300), (57, 56)):
        drawn = Image.radial_gradient("L").resize(size).convert("RGB")
        right, found = (reader([drawn], return_tensors="pt", **asked) for reader in (own, ours))
        assert right.keys() == found.keys(), (family, right.keys(), found.keys())
        for key in right:
            a, b = (numpy.asarray(out[key], dtype=float) if key != "pixel_values" else out[key].float().numpy() for out in (right, found))
            away = abs(a - b).max() if a.shape == b.shape else numpy.inf
            assert away <= (0.05 if key == "pixel_values" else 0), (family, size, key, a.shape, b.shape, away)
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


def loaded(with_torchvision, folder, names, code=LOADS):
    path = [str(Path(si.__file__).parents[1]), *([str(stand_in(folder))] if with_torchvision else [])]
    code = f"import sys; sys.path[:0] = {path!r}\n{code}"
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


@pytest.mark.full
def test_recent_families_load_beside_torchvision(tmp_path):
    names = [f"tiny-random/{name}" for name in RECENT]
    found = loaded(True, tmp_path, names)
    assert [(name, scores) for name, _, scores in found] == [(name, "1.0") for name in names]
    kinds = {name.removeprefix("tiny-random/"): kind for name, kind, _ in found}
    own = {"mistral3": "PixtralProcessor", "lfm2_vl": "Lfm2VlProcessor", "llama4": "Llama4Processor"}
    assert {name: kinds[name] for name in own if name in kinds} == {name: kind for name, kind in own.items() if name in kinds}


@pytest.mark.full
def test_the_zoo_cuts_images_as_the_families_own_processors_do(tmp_path):
    """LFM2-VL's and Llama 4's want torchvision; without it the zoo cuts their tiles itself."""
    assert loaded(True, tmp_path, [], TILES) == []


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
