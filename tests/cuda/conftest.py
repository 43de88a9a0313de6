"""The device that these tests run on: a GPU, the pretended one of `support/pretended_gpu.py`, or what SCALE_INTERP_TEST_DEVICE names."""

import ctypes
import gc
import os
import resource
import sys
import warnings
from contextlib import contextmanager

import psutil
import pytest
import torch

import scale_interp as si
from tests.support.zoo_models import three_questions

DEVICE = os.environ.get("SCALE_INTERP_TEST_DEVICE", "cuda")
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8
if DEVICE == "cpu":  # freed tensors leave the address space and no thread reserves some, so a cap means the same after any tests
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**17)
    ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def pytest_collection_modifyitems(items):
    here = [item for item in items if item.path.parent.name == "cuda"]
    for item in here:
        item.add_marker(pytest.mark.cuda)
        if DEVICE.startswith("cuda") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no GPU here; `-p tests.support.pretended_gpu` pretends one"))


@pytest.fixture(scope="session")
def device():
    """Products in float32 are exact there: TF32 rounds them to 10 bits."""
    if not DEVICE.startswith("cuda"):
        yield torch.device(DEVICE)
        return
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield torch.device(DEVICE)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="session")
def models(device):
    """models(name, dtype): a model of the zoo there, loaded once."""
    loaded = {}

    def open_model(name, dtype=torch.float32):
        if (name, dtype) not in loaded:
            loaded[name, dtype] = si.load(f"tiny-random/{name}", device=str(device), dtype=dtype)
        return loaded[name, dtype]

    return open_model


@pytest.fixture(scope="session")
def there(device):
    """The model `demo` on the device."""
    return si.load("demo", device=str(device), dtype=torch.float32)


@pytest.fixture(scope="session")
def questions():
    """Three prompts of different lengths, and one whose choices are several tokens with a common beginning."""
    first = three_questions()
    longer = si.Question(first[0].text, ("above left", "above right", "below"), 1, picture=first[0].picture, id="long")
    return [*first, longer]


@pytest.fixture
def waits(device):
    """A block that lists what the CPU waits for the GPU for."""
    if device.type != "cuda":
        pytest.skip("nothing waits for a CPU")
    pretended = sys.modules.get("tests.support.pretended_gpu")

    @contextmanager
    def block():
        found = []
        if pretended is not None:
            before = pretended.waits.copy()
            yield found
            found += (pretended.waits - before).elements()
            return
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
        found += [str(one.message) for one in said if "synchronizing" in str(one.message)]

    return block


@pytest.fixture
def capped(device):
    """capped(n): a block in which only n more bytes can be allocated: torch's own cap on a GPU, the process's address space on a CPU."""

    @contextmanager
    def block(more):
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            total = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + more) / total, device)
            try:
                yield
            finally:
                torch.cuda.set_per_process_memory_fraction(1.0, device)
                torch.cuda.empty_cache()
            return
        ctypes.CDLL(None).malloc_trim(0)  # what was freed and kept would be room beyond the cap
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + more, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)

    return block
