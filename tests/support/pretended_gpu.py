"""A GPU that is not there, as a plugin of pytest: `pytest -p tests.support.pretended_gpu -m cuda`.

Its tensors say that they are on cuda:0 and are computed by the CPU, and an operation on tensors of two devices fails as it does on a GPU.
So it finds what would fail there first, and counts where the CPU would wait for the GPU; it says nothing of speed, memory or rounding.
Fused kernels are stood in for by a softmax in float32 that asks for what those ask for.
"""

import hashlib
import importlib.util
import subprocess
import sys
import sysconfig
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

SOURCE = Path(__file__).with_suffix(".cpp")
PACKAGE = "/scale_interp/"


def build() -> None:
    """Compile and import what torch lacks; torch asks for it once, while it is imported itself."""
    torch_folder = Path(importlib.util.find_spec("torch").submodule_search_locations[0])
    headers = [torch_folder / "include", torch_folder / "include/torch/csrc/api/include", sysconfig.get_paths()["include"]]
    key = hashlib.sha256(SOURCE.read_bytes() + str(torch_folder).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"pretended-gpu-{key}"
    library = folder / "pretended_gpu.so"
    if not library.exists():
        folder.mkdir(exist_ok=True)
        command = ["g++", "-O1", "-shared", "-fPIC", "-std=c++20", "-DTORCH_EXTENSION_NAME=pretended_gpu", *(f"-I{h}" for h in headers)]
        links = [f"-L{torch_folder / 'lib'}", "-lc10", "-ltorch_cpu", "-ltorch", f"-Wl,-rpath,{torch_folder / 'lib'}"]
        part = library.with_suffix(".part")
        subprocess.run([*command, str(SOURCE), "-o", str(part), *links], check=True)
        part.rename(library)
    spec = importlib.util.spec_from_file_location("pretended_gpu", library)
    sys.modules["pretended_gpu"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["pretended_gpu"])


if "torch" in sys.modules:
    sys.exit("torch is imported already: give this as a plugin, with -p tests.support.pretended_gpu")
build()

import torch  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing  # noqa: E402
from torch.utils._pytree import tree_leaves, tree_map  # noqa: E402

if torch.version.cuda:
    sys.exit("this torch is built for CUDA: run `pytest -m cuda` on a GPU, or give SCALE_INTERP_TEST_DEVICE=cpu")

aten = torch.ops.aten
MEMORY = 8 * 10**9
TWO_DEVICES = {
    aten._to_copy.default,
    aten.copy_.default,
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
"""Operations that a GPU takes with tensors of the CPU, too."""
WAITING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.equal.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.repeat_interleave.Tensor,
}
"""Operations whose result the CPU needs at once."""
waits: Counter[str] = Counter()
"""How often the CPU would have waited for the GPU, by operation and place."""


class OnCard(torch.Tensor):
    """A tensor on the pretended GPU; `inner` is the same on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        about = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype, "layout": inner.layout}
        out = torch.Tensor._make_wrapper_subclass(cls, inner.size(), device=torch.device("cuda", 0), **about)
        out.inner = inner
        return out

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return compute(operation, args, kwargs or {})

    def __repr__(self):
        return f"on the pretended GPU: {self.inner!r}"

    def __deepcopy__(self, known):
        if id(self) not in known:
            with torch.no_grad():
                copy = self.detach().clone()
            parameter = isinstance(self, torch.nn.Parameter)
            known[id(self)] = torch.nn.Parameter(copy, self.requires_grad) if parameter else copy.requires_grad_(self.requires_grad)
        return known[id(self)]

    def tolist(self):
        waits[f"tolist at {caller()}"] += 1
        return self.inner.tolist()

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first.")

    def as_subclass(self, cls):
        return self

    def data_ptr(self):
        return self.inner.data_ptr()


def caller():
    """The line of the package that does this; a backward pass has none."""
    frames = traceback.walk_stack(sys._getframe(1))
    lines = (
        f"{frame.f_code.co_filename.rpartition('scale_interp/')[2]}:{number}"
        for frame, number in frames
        if PACKAGE in frame.f_code.co_filename
    )
    return next(lines, "a backward pass or torch")


def compute(operation, args, kwargs):
    """An operation of which some tensors are on the pretended GPU, or whose result is to be there."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, OnCard)]
    device = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    if not ours and (device is None or device.type != "cuda"):
        return operation(*args, **kwargs)
    if ours and operation not in TWO_DEVICES and any(tensor.dim() and not isinstance(tensor, OnCard) for tensor in tensors):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({operation})")
    if waited(operation, args, kwargs, ours, device):
        waits[f"{operation} at {caller()}"] += 1
    changed = {"device": torch.device("cpu")} if device is not None and device.type == "cuda" else {}
    inner_args, inner_kwargs = tree_map(lambda x: x.inner if isinstance(x, OnCard) else x, (args, kwargs | changed))
    out = STAND_INS.get(operation, operation)(*inner_args, **inner_kwargs)
    if operation is aten.copy_.default:
        return args[0]
    there = device.type == "cuda" if device is not None else operation not in TWO_DEVICES or isinstance(args[0], OnCard)
    if not there:
        return out
    out = tree_map(lambda x: OnCard(x) if isinstance(x, torch.Tensor) else x, out)
    return return_and_correct_aliasing(operation, args, kwargs, out) if ours else out


def waited(operation, args, kwargs, ours, device):
    """Whether the CPU would wait for the GPU here; a copy either way waits for all that came before it, unless it says that it does not."""
    if operation is aten.copy_.default:
        return isinstance(args[0], OnCard) != isinstance(args[1], OnCard) and args[1].numel() and not (len(args) > 2 and args[2])
    if operation is aten._to_copy.default:
        return device is not None and (device.type == "cuda") != bool(ours) and args[0].numel() and not kwargs.get("non_blocking")
    if operation in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
        return any(isinstance(index, OnCard) and index.dtype == torch.bool for index in args[1])
    return bool(ours) and operation in WAITING


def written_out(query, keys, values, bias, scale):
    assert query.dim() == 4 and query.shape[1] == keys.shape[1] == values.shape[1]
    assert all(part.stride(-1) == 1 and part.shape[-1] % 8 == 0 for part in (query, keys, values))
    scores = scale * (query.float() @ keys.float().mT)
    if bias is not None:
        assert bias.shape == scores.shape and bias.dtype == query.dtype and bias.stride(-1) == 1
        assert all(bias.stride(axis) % 8 == 0 for axis in range(3))
        scores = scores + bias.float()
    return (scores.softmax(-1) @ values.float()).to(query.dtype), scores.logsumexp(-1)


def flash(query, keys, values, dropout=0.0, causal=False, debug=False, *, scale=None):
    if query.dtype not in (torch.float16, torch.bfloat16):
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
    nothing = torch.empty(0, dtype=torch.int32)
    return *written_out(query, keys, values, None, scale), nothing, nothing, query.shape[2], keys.shape[2], nothing, nothing, nothing


def efficient(query, keys, values, bias, wanted, dropout=0.0, causal=False, *, scale=None):
    out, total = written_out(query, keys, values, bias, scale)
    return out, torch.nn.functional.pad(total, (0, -total.shape[-1] % 32)), torch.empty(0), torch.empty(0)


def in_float32(operation):
    """A CPU has it in float32 only."""
    return lambda x, *args, **kwargs: operation(x.float(), *args, **kwargs).to(x.dtype)


STAND_INS = {
    aten._scaled_dot_product_flash_attention.default: flash,
    aten._scaled_dot_product_efficient_attention.default: efficient,
    aten._softmax.default: lambda x, dim, to_float: torch.softmax(x.float() if to_float else x, dim),
    aten._log_softmax.default: lambda x, dim, to_float: torch.log_softmax(x.float() if to_float else x, dim),
    aten.histc.default: in_float32(aten.histc.default),
    aten._upsample_bilinear2d_aa.default: in_float32(aten._upsample_bilinear2d_aa.default),
    aten._upsample_bicubic2d_aa.default: in_float32(aten._upsample_bicubic2d_aa.default),
}


class Everywhere(TorchDispatchMode):
    """What makes tensors with device="cuda"."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return compute(operation, args, kwargs or {})


def pretend() -> None:
    card = SimpleNamespace(name="pretended GPU", total_memory=2 * MEMORY, major=9, minor=0, multi_processor_count=100)
    said = {
        "_lazy_init": None,
        "is_available": True,
        "is_initialized": True,
        "current_device": 0,
        "device_count": 1,
        "get_device_name": card.name,
        "get_device_properties": card,
        "get_device_capability": (9, 0),
        "empty_cache": None,
        "memory_allocated": 0,
        "memory_reserved": 0,
        "max_memory_allocated": 0,
        "reset_peak_memory_stats": None,
        "mem_get_info": (MEMORY, card.total_memory),
        "get_per_process_memory_fraction": 1.0,
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": None,
    }
    for name, answer in said.items():
        setattr(torch.cuda, name, lambda *args, answer=answer, **kwargs: answer)
    torch.cuda.synchronize = lambda *args: waits.update(["synchronize"])
    torch.cuda.default_generators = (torch.Generator(),)
    torch._C._set_only_lift_cpu_tensors(True)
    torch.__future__.set_swap_module_params_on_conversion(True)
    library = torch.library.Library("aten", "IMPL")
    library.impl("_local_scalar_dense", lambda x: x.inner.item(), "CUDA")  # of torch.tensor([a tensor there, ...])
    kept.append(library)
    Everywhere().__enter__()


def pytest_collection_finish(session):
    """A weight there is one of OnCard, which the package would take for another kind of numbers."""
    import scale_interp.vlm.mode
    import scale_interp.vlm.plain

    for module in (scale_interp.vlm.mode, scale_interp.vlm.plain):
        module.is_quantised = lambda linear: not linear.weight.is_floating_point()


kept: list[torch.library.Library] = []
pretend()
