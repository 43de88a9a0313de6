"""Prompts that were read are kept in memory, on disk or not at all: the numbers are the same."""

import gc
import shutil
from collections import namedtuple
from dataclasses import replace

import pytest
import torch

import scale_interp as si
from scale_interp.errors import EditError, MemoryWarning, ModelError
from scale_interp.execution.memory import prompt_bytes
from scale_interp.interventions import placement, prefix, storage
from scale_interp.interventions import prefix_disk as spill
from scale_interp.interventions.prefix import PrefixStore

MODES = ("auto", "memory", "disk", "recompute", "host")


@pytest.fixture(scope="module")
def train():
    return si.load_questions("scenes/relation", n=32)


def layers(batch):
    return [t for layer in batch.layers for t in (layer.keys, layer.values)]


@pytest.mark.parametrize("family", ["demo", "tiny-random/gemma3", "tiny-random/qwen2_5_vl", "tiny-random/idefics3"])
def test_every_mode_gives_the_same_bits(train, family):
    vlm = si.load(family)
    whole = [layers(batch) for batch in PrefixStore(vlm, train[:6], 4, cache="recompute")]
    for mode in MODES:
        prompts = PrefixStore(vlm, train[:6], 4, cache=mode)
        for _ in range(2):
            for kept, batch in zip(whole, prompts, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(kept, layers(batch), strict=True))
        assert prompts.reads == (4 if mode == "recompute" else 2)


@pytest.mark.parametrize("mode", MODES)
def test_a_fit_reads_each_prompt_once(vlm, train, mode):
    """Whatever the number of epochs; beyond the memory too."""
    prompts = PrefixStore(vlm, train, 8, cache=mode)
    scale = si.fit_scale(vlm, train, prompts=prompts, epochs=3)
    assert torch.equal(scale.scalars, si.fit_scale(vlm, train, epochs=3, batch_size=8).scalars)
    assert prompts.reads == (4 * (1 + 2 * 3) if mode == "recompute" else 4)


def behind_torchs_back(model):
    model.all_layers[1].mlp.down_proj.weight.data *= 0.5


def hook(model):
    model.all_layers[1].mlp.register_forward_hook(lambda module, args, out: out * 0.5)


def other_choice_space(model):
    model.choice_space = "with"


def other_image_processing(model):
    model.processor.image_processor.image_mean = [0.1, 0.1, 0.1]


def adapter_off(model):
    model.all_layers[1].mlp.up_proj.enable_adapters(False)


@pytest.mark.parametrize(
    "change", [behind_torchs_back, hook, other_choice_space, other_image_processing, adapter_off], ids=lambda change: change.__name__
)
def test_prompts_of_a_model_that_has_changed_are_refused(train, change):
    from peft import LoraConfig, inject_adapter_in_model

    model, four = si.load("demo"), train[:4]
    lora = LoraConfig(r=2, target_modules=r".*language_model\.layers\.1\.mlp\.up_proj", init_lora_weights=False)
    inject_adapter_in_model(lora, model.hf_model)
    model.hf_model.eval()
    prompts = PrefixStore(model, four)
    first = si.run_edits(model, four, prompts=prompts)
    assert torch.equal(si.run_edits(model, four, prompts=prompts), first)
    change(model)
    with pytest.raises(EditError, match="changed since these prompts were made"):
        si.run_edits(model, four, prompts=prompts)


def test_a_hook_that_looks_on_leaves_prompts_as_they_are(train):
    """One that changes the last token alone leaves them too, but not what the last tokens computed."""
    model, four, seen = si.load("demo"), train[:4], []
    prompts = PrefixStore(model, four)
    before = si.ablate(model, four, "mean", prompts=prompts)
    with model.all_layers[1].register_forward_hook(lambda module, args, out: seen.append(module)):
        assert torch.equal(si.ablate(model, four, "mean", prompts=prompts).per_question, before.per_question) and seen
    model.all_layers[-1].mlp.register_forward_hook(lambda module, args, out: out * 0.5)
    changed = si.ablate(model, four, "mean", prompts=prompts)
    assert torch.equal(changed.per_question, si.ablate(model, four, "mean").per_question)
    assert not torch.equal(changed.per_question, before.per_question)


def test_prompts_of_another_model_or_another_prompt_are_refused(vlm, train):
    prompts, four = PrefixStore(vlm, train[:4]), train[:4]
    with pytest.raises(EditError, match="read by another model"):
        si.evaluate(si.load("demo-prior"), four, prompts=prompts)
    with pytest.raises(EditError, match="the prompt, the processor"):
        si.evaluate(vlm.with_prompt("{images}{text} Say: "), four, prompts=prompts)


def test_prompts_are_compared_by_what_is_asked_and_shown(vlm, train):
    """Not by names, which questions with other images may share, and not by answers, which prompts do not show."""
    four = train[:4]
    prompts = PrefixStore(vlm, four)
    shown = [replace(q, image=other.image_source) for q, other in zip(four, [*four[1:], four[0]], strict=True)]
    with pytest.raises(EditError, match="of other questions"):
        si.run_edits(vlm, shown, prompts=prompts)
    renamed = [replace(q, id=f"again {i}", image=q.image) for i, q in enumerate(four)]
    assert torch.equal(si.run_edits(vlm, renamed, prompts=prompts), si.run_edits(vlm, four, prompts=prompts))
    taught = [replace(q, answer=(q.answer + 1) % 4) for q in four]
    for method in (si.attribute, si.ablate):
        assert torch.equal(method(vlm, taught, prompts=prompts).per_question, method(vlm, taught).per_question)


def test_what_exceeds_the_memory_goes_to_disk(vlm, train, monkeypatch):
    one = PrefixStore(vlm, train, 8)[0].nbytes
    monkeypatch.setattr(storage, "free_memory", lambda device: int(2.5 * one / storage.KEPT_SHARE))
    monkeypatch.setattr(storage, "seconds_per_byte", lambda name, device: 0.0)
    prompts = PrefixStore(vlm, train, 8)
    assert [sum(t.nbytes for t in layers(batch)) for batch in prompts] == [one] * 4
    files = list(prompts._spill.folder.iterdir())
    assert len(files) == 2 and sum(p.nbytes for p in prompts._kept.values()) == 2 * one
    assert list(prompts) and prompts.reads == 4
    folder = prompts._spill.folder
    del prompts
    gc.collect()
    assert not folder.exists()


@pytest.mark.parametrize("damage", ["flipped", "short", "gone"])
def test_a_damaged_file_is_read_again(vlm, train, damage):
    prompts = PrefixStore(vlm, train[:16], 8, cache="disk")
    whole = [layers(batch) for batch in prompts]
    path = prompts._spill.folder / "1.safetensors"
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(content[:-5] if damage == "short" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.warns(MemoryWarning, match="1.safetensors: .*; its prompts are read again"):
        again = layers(prompts[1])
    assert all(torch.equal(a, b) for a, b in zip(whole[1], again, strict=True))
    assert prompts.reads == 3
    assert layers(prompts[1]) and prompts.reads == 3


@pytest.mark.parametrize("why", ["full", "unwritable"])
def test_a_full_disk_is_said_and_the_rest_read_again(vlm, train, monkeypatch, why):
    if why == "full":
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 0))
    else:
        monkeypatch.setattr(spill.Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    prompts = PrefixStore(vlm, train[:16], 8, cache="disk")
    with pytest.warns(MemoryWarning, match="no space on disk for prompts"):
        first = layers(prompts[0])
    with pytest.warns(MemoryWarning):
        assert all(torch.equal(a, b) for a, b in zip(first, layers(prompts[0]), strict=True))
    assert prompts.reads == 2


def test_a_folder_that_somebody_deletes_is_said_and_its_prompts_read_again(vlm, train):
    prompts = PrefixStore(vlm, train[:16], 8, cache="disk")
    whole = [layers(prompts[0]), layers(PrefixStore(vlm, train[:16], 8)[1])]
    shutil.rmtree(prompts._spill.folder)
    with pytest.warns(MemoryWarning, match="No such file"):
        again = [layers(batch) for batch in prompts]
    assert all(torch.equal(a, b) for one, other in zip(whole, again, strict=True) for a, b in zip(one, other, strict=True))


def test_the_mode_is_the_models(train):
    vlm = si.load("demo", prefix_cache="recompute")
    assert PrefixStore(vlm, train).cache == "recompute"
    vlm.prefix_cache = "disk"
    assert PrefixStore(vlm, train).cache == "disk"
    for wrong in (lambda: si.load("demo", prefix_cache="disc"), lambda: PrefixStore(vlm, train, cache="ram")):
        with pytest.raises(ModelError, match="choose 'auto', 'memory', 'disk', 'recompute'"):
            wrong()


def test_shared_pictures_have_one_reading_whatever_was_read_before():
    """Features in the pixels' place, or pixels: which of the two may not hang on the order of reading."""
    vlm = si.load("tiny-random/qwen2_5_vl")
    base = si.load_questions("scenes/relation", n=4)
    picture = base[0].image
    asked = [si.Question(q.text, q.choices, q.answer, picture, id=str(i)) for i, q in enumerate(base)]
    in_order = [layers(batch) for batch in PrefixStore(vlm, asked, 2)]
    prompts = PrefixStore(vlm, asked, 2, cache="recompute")
    for index in (1, 1, 0, 1):
        assert all(torch.equal(a, b) for a, b in zip(in_order[index], layers(prompts[index]), strict=True))


@pytest.mark.parametrize("family", ["demo", "tiny-random/gemma3", "tiny-random/qwen2_5_vl", "tiny-random/internvl"])
def test_prompts_are_read_in_halves_where_memory_runs_out(train, monkeypatch, family):
    vlm, read = si.load(family), prefix.read_prefix
    long = [si.Question(f"Well then, after all of this: {q.text}", q.choices, q.answer, q.picture, id=f"long {q.id}") for q in train[:2]]
    asked, edit = [*long, *train[:4]], si.Edit.scaling([(1, 0)], 0.0, vlm.n_layers, vlm.n_heads)
    whole = si.run_edits(vlm, asked, edit)

    def scarce(vlm, questions, *others):
        if len(questions) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return read(vlm, questions, *others)

    monkeypatch.setattr(prefix, "read_prefix", scarce)
    with pytest.warns(MemoryWarning, match="no memory to read 6 prompts at once; reading 3"):
        halved = si.run_edits(vlm, asked, edit)
    assert (halved - whole).nan_to_num(0, 0, 0).abs().max() <= 1e-5


def test_no_memory_for_one_prompt(vlm, train, monkeypatch):
    monkeypatch.setattr(prefix, "read_prefix", lambda *_: (_ for _ in ()).throw(MemoryError("full")))
    with pytest.warns(MemoryWarning), pytest.raises(ModelError, match=r"no memory to read question .*: give a smaller image"):
        si.evaluate(vlm, train[:4])


@pytest.mark.parametrize(("seconds", "room", "expected"), [(0.0, 10**9, "disk"), (1e3, 10**9, None), (0.0, 0, None)])
def test_the_cheapest_place_is_taken(vlm, train, monkeypatch, seconds, room, expected):
    """Beyond the memory: the disk where getting prompts back takes less time than reading them again did, and where it has room."""
    one = PrefixStore(vlm, train, 8)[0].nbytes
    monkeypatch.setattr(storage, "free_memory", lambda device: int(1.5 * one / storage.KEPT_SHARE))
    monkeypatch.setattr(storage, "seconds_per_byte", lambda name, device: seconds)
    prompts = PrefixStore(vlm, train, 8)
    prompts._room["disk"] = room
    first, again = ([layers(batch) for batch in prompts] for _ in range(2))
    assert prompts.places.get(0) == "memory" and [prompts.places.get(i) for i in (1, 2, 3)] == [expected] * 3
    assert prompts.reads == (4 if expected else 7)
    assert all(torch.equal(a, b) for x, y in zip(first, again, strict=True) for a, b in zip(x, y, strict=True))


def test_places_are_measured(vlm, train):
    places = placement.measure_places(vlm, train[0])
    assert places[0].name == "memory" and {place.name for place in places} == {"memory", "disk", "recompute"}
    assert places[0].seconds == 0 and all(0 < place.seconds < 1e4 for place in places[1:])
    assert [place.seconds for place in places] == sorted(place.seconds for place in places)
    tokens = vlm.encode(train[0])["input_ids"].shape[1] - 1
    one = prompt_bytes(vlm, tokens)
    assert one == PrefixStore(vlm, train[:1])[0].nbytes
    few = [placement.Place("memory", 2 * one, 0.0), placement.Place("recompute", 10**15, 1.0), placement.Place("disk", 10**15, 2.0)]
    assert placement.placement(vlm, few, tokens, 5) == {"memory": 2, "recompute": 3}


def test_a_gpu_has_its_host_beside_it(vlm, monkeypatch):
    monkeypatch.setattr(type(vlm), "device", torch.device("cuda:0"))
    monkeypatch.setattr(storage, "free_memory", lambda device: 4 * 10**9)
    room = storage.rooms(vlm, "auto")
    assert list(room) == ["memory", "host", "disk"] and room["memory"] == 10**9
    costs = {"host": 1e-10, "disk": 1e-9}
    monkeypatch.setattr(storage, "seconds_per_byte", lambda name, device: costs[name])
    place = lambda reading: storage.cheapest(10**9, reading, room | {"memory": 0, "host": 10**9}, vlm.device, measured=True)  # noqa: E731
    assert (place(1.0), place(0.05)) == ("host", "recompute")
    assert storage.cheapest(10**9, 5.0, {"memory": 0, "host": 0, "disk": 10**10}, vlm.device, measured=True) == "disk"
