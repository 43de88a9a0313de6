"""What `si.load` is given: names, folders that are no VLM, damaged or mixed ones, pickles, and code that must not run."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, T5Config

import scale_interp as si
from scale_interp.errors import ArgumentError, ModelError
from scale_interp.models.demo import folder as demo_folder
from tests.bad_input.kind import Kind
from tests.bad_input.results import Boom

EVIL = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"
"""Code of a model's own; it leaves a trace where it runs."""


def folder(mistake: str, says: str, change: Callable[[Path], Any], **options: Any) -> Kind:
    """A copy of the demo's folder with something changed."""

    def call(room: Any) -> Any:
        place = room.folder / "model"
        shutil.copytree(demo_folder("demo"), place)
        change(place)
        try:
            return si.load(place, **options)
        finally:
            assert not (place / "ran").exists(), "code of the folder ran"

    return Kind("si.load of a folder", mistake, ModelError, says, call)


def config(**changed: Any) -> Callable[[Path], None]:
    return lambda place: rewrite(place / "config.json", lambda content: content.update(changed))


def text_config(**changed: Any) -> Callable[[Path], None]:
    return lambda place: rewrite(place / "config.json", lambda content: content["text_config"].update(changed))


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def write(name: str, content: str) -> Callable[[Path], Any]:
    return lambda place: (place / name).write_text(content)


def remove(name: str) -> Callable[[Path], None]:
    return lambda place: (place / name).unlink()


def cut(name: str) -> Callable[[Path], Any]:
    return lambda place: (place / name).write_bytes((place / name).read_bytes()[: (place / name).stat().st_size // 2])


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def write_weights(place: Path) -> None:
        found = load_file(place / "model.safetensors")
        change(found)
        save_file(found, place / "model.safetensors", {"format": "pt"})

    return write_weights


def pickled(name: str) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        (place / "model.safetensors").unlink()
        torch.save({"weight": Boom()}, place / name)

    return change


def index(content: str) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        (place / "model.safetensors").unlink()
        (place / "model.safetensors.index.json").write_text(content)

    return change


def with_code(name: str, entry: dict[str, Any]) -> Callable[[Path], None]:
    """A file that asks for code of the folder's own."""

    def change(place: Path) -> None:
        (place / "evil.py").write_text(EVIL)
        rewrite(place / name, lambda content: content.update(entry))

    return change


def in_place(saved: Any) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        shutil.rmtree(place)
        place.mkdir()
        saved.save_pretrained(place)

    return change


def emptied(place: Path) -> None:
    shutil.rmtree(place)
    place.mkdir()


def text_model() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(vocab_size=10, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1))


def first(found: dict[str, torch.Tensor], end: str) -> str:
    return next(key for key in sorted(found) if key.endswith(end))


SHARDS = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
FOLDERS = (
    folder("an empty folder", "no folder with a config.json", emptied),
    folder("no config.json", "no folder with a config.json", remove("config.json")),
    folder("config.json is cut", "not a valid JSON file", cut("config.json")),
    folder("config.json is empty", "not a valid JSON file", write("config.json", "")),
    folder("config.json holds a list", "config.json of a model", write("config.json", "[]")),
    folder("config.json is no UTF-8", "config.json of a model", lambda place: (place / "config.json").write_bytes(b"\xff\xfe{}")),
    folder("config.json is nested without end", "config.json of a model", write("config.json", "[" * 100_000)),
    folder("config.json names no model", "model_type", lambda place: rewrite(place / "config.json", lambda c: c.pop("model_type"))),
    folder("an unknown architecture", "nosuch", config(model_type="nosuch")),
    folder("the text model's configuration is missing", "config and weights of one model", config(text_config=None)),
    folder("the text model's configuration is a list", "text_config", config(text_config=[])),
    folder("the vision model's configuration is a text", "vision_config|config.json of a model", config(vision_config="x")),
    folder("a size that is a text", "hidden_size", text_config(hidden_size="abc")),
    folder("a negative size", "cannot be loaded", text_config(hidden_size=-128)),
    folder("no heads", "config.json of a model", text_config(num_attention_heads=0)),
    folder("heads that do not divide the size", "attention heads", text_config(num_attention_heads=7)),
    folder("more layers than weights", "lack .*layers.6", text_config(num_hidden_layers=7)),
    folder("fewer layers than weights", "weights and config of one model", text_config(num_hidden_layers=5)),
    folder("fewer heads than weights", "cannot be loaded", text_config(num_attention_heads=4)),
    folder("another vocabulary than the weights", "cannot be loaded", text_config(vocab_size=70)),
    folder("an image token out of the vocabulary", "none of 61 tokens", config(image_token_index=400)),
    folder("another image token than the processor's", "load both of one model|processor", config(image_token_index=5)),
    folder("a text-only model", "takes no images", in_place(text_model())),
    folder("an encoder-decoder model", "takes no images", in_place(T5Config())),
    folder("an encoder-decoder model of images", "encoder-decoder", in_place(AutoConfig.for_model("florence2"))),
    folder(
        "weights that need a library that is missing",
        "cannot be loaded",
        config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
    ),
    folder("no weights", "cannot be loaded|config and weights", remove("model.safetensors")),
    folder("weights are empty", "cannot be loaded|config and weights", write("model.safetensors", "")),
    folder("weights are cut", "cannot be loaded", cut("model.safetensors")),
    folder("weights are a text", "cannot be loaded|config and weights", write("model.safetensors", "hello, these are no weights")),
    folder(
        "weights are a pickle under a safe name",
        "cannot be loaded|config and weights",
        lambda p: (p / "model.safetensors").write_bytes(pickle.dumps(Boom())),
    ),
    folder(
        "weights of another model",
        "lack|cannot be loaded|config and weights",
        lambda p: save_file({"w": torch.ones(2)}, p / "model.safetensors", {"format": "pt"}),
    ),
    folder("a weight is missing", "lack .*q_proj", weights(lambda found: found.pop(first(found, "q_proj.weight")))),
    folder(
        "a weight of another size",
        "cannot be loaded",
        weights(lambda found: found.update({first(found, "q_proj.weight"): torch.ones(2, 2)})),
    ),
    folder("a pickle alone, pytorch_model.bin", "are a pickle .*convert it", pickled("pytorch_model.bin")),
    folder("a pickle alone, model.pt", "are a pickle .*convert it", pickled("model.pt")),
    folder("a pickle alone, consolidated.pth", "are a pickle .*convert it", pickled("consolidated.pth")),
    folder("a pickle alone, model.ckpt", "are a pickle .*convert it", pickled("model.ckpt")),
    folder("a shard is missing", "model-00001-of-00002|config and weights", index(json.dumps(SHARDS))),
    folder("the list of shards is cut", "not a list of weight files", index('{"weight_map": {')),
    folder("the list of shards is a list", "not a list of weight files", index("[]")),
    folder("the list of shards has no map", "not a list of weight files", index("{}")),
    folder("a shard above the folder", "none of the folder", index(json.dumps({"weight_map": {"a": "../model.safetensors"}}))),
    folder("a shard by its absolute path", "none of the folder", index(json.dumps({"weight_map": {"a": "/etc/passwd"}}))),
    folder("a shard that is a number", "none of the folder", index(json.dumps({"weight_map": {"a": 3}}))),
    folder("no tokenizer", "no usable processor", remove("tokenizer.json")),
    folder("the tokenizer is cut", "no usable processor", cut("tokenizer.json")),
    folder("the tokenizer is an empty object", "no usable processor", write("tokenizer.json", "{}")),
    folder("the tokenizer is a list", "no usable processor", write("tokenizer.json", "[]")),
    folder("the tokenizer's settings are cut", "no usable processor", cut("tokenizer_config.json")),
    folder("the settings of generation are cut", "generation_config.json is damaged", cut("generation_config.json")),
    folder("no processor", "no usable processor|no processor for images", remove("processor_config.json")),
    folder("the processor is cut", "no usable processor", cut("processor_config.json")),
    folder("the processor is a list", "no usable processor", write("processor_config.json", "[]")),
    folder("a chat template that does not parse", "chat template fails", write("chat_template.jinja", "{% for %}")),
    folder("a chat template that fails", "chat template fails", write("chat_template.jinja", "{{ raise_exception('no') }}")),
    folder("a chat template that shows no picture", "chat template fails", write("chat_template.jinja", "hello")),
    folder(
        "a chat template that reaches into Python",
        "chat template fails",
        write("chat_template.jinja", "{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    ),
    folder(
        "a configuration with code of its own",
        "custom code",
        with_code("config.json", {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForImageTextToText": "evil.M"}}),
    ),
    folder(
        "a processor with code of its own",
        "custom code",
        with_code("processor_config.json", {"processor_class": "Evil", "auto_map": {"AutoProcessor": "evil.P"}}),
    ),
)


def named(mistake: str, error: type[Exception], says: str, *args: Any, **options: Any) -> Kind:
    return Kind("si.load", mistake, error, says, lambda room: si.load(*args, **options))


NAMES = (
    named("a name of no model", ModelError, "did you mean 'demo'", "dmeo"),
    named("an empty name", ModelError, "cannot load the name ''", ""),
    named("a blank name", ModelError, "cannot load the name", "  "),
    named("a name with a null byte", ModelError, "no model", "\0"),
    named("a name of 5,000 letters", ModelError, "no model", "a" * 5000),
    named("a hub id that cannot be reached", ModelError, "no hub id that can be reached", "no-such/model"),
    named("a hub id of another form", ModelError, "no model", "a/b/c/d"),
    named("a folder that is not there", ModelError, "no model", "/no/such/folder"),
    named("a file of weights", ModelError, "no model", str(demo_folder("demo") / "model.safetensors")),
    named("a file of a configuration", ModelError, "cannot be loaded", str(demo_folder("demo") / "config.json")),
    named("a data set's name", ModelError, "no model", "scenes/relation"),
    named("an unknown tiny model", ModelError, "did you mean 'llava'", "tiny-random/llva"),
    named("an unknown test-bed", ModelError, "did you mean 'one-head'", "testbed/one-hed"),
    named("a number", ModelError, "cannot load a int", 3),
    named("nothing", ModelError, "cannot load a NoneType", None),
    named("a torch module", ModelError, "cannot load a Linear", torch.nn.Linear(2, 2)),
    named("a name for a processor", ArgumentError, "give its processor", "demo", "demo"),
    named("an unknown device", ModelError, "give 'cpu'", "demo", device="gpu"),
    named("a device that is not there", ModelError, "give a device that this machine has", "demo", device="cuda:97"),
    named("an unknown dtype", ModelError, "floating-point", "demo", dtype="float99"),
    named("a dtype of whole numbers", ModelError, "floating-point", "demo", dtype=torch.int8),
    named("a dtype that is a number", ArgumentError, "dtype=16", "demo", dtype=16),
    named("an unknown device_map", ModelError, "choose from auto", "demo", device_map="moon"),
    named("a device and a device_map", ModelError, "give one of them", "demo", device="cpu", device_map="auto"),
    named("an unknown quantisation", ModelError, "choose 'nf4' or 'int8'", "demo", quantization_config="nf8"),
    named("a quantisation that is a number", ModelError, "a configuration of transformers", "demo", quantization_config=4),
    named("a device_map that is a number", ArgumentError, "device_map=5", "demo", device_map=5),
    named("a revision that is a number", ArgumentError, "give a text", "demo", revision=3),
    named("a prompt without a question", ModelError, "would never show the question", "demo", prompt="scale-lava"),
    named("a prompt that is a number", ArgumentError, "give a text", "demo", prompt=3),
    named("check that is a text", ArgumentError, "give True or False", "demo", check="yes"),
    named("trust_remote_code that is a text", ArgumentError, "give True or False", "demo", trust_remote_code="no"),
    named("a misspelt option", ArgumentError, "did you mean 'dtype'", "demo", dtpye="float32"),
    named("an unknown prefix cache", ModelError, "prefix_cache|choose", "demo", prefix_cache="tape"),
    Kind("si.load", "a live model without its processor", ModelError, "needs its processor", lambda room: si.load(room.vlm.hf_model)),
    Kind("si.load", "a VLM that is loaded already", ModelError, "cannot load a VLM", lambda room: si.load(room.vlm)),
    Kind("si.load", "a live text-only model", ModelError, "no image token", lambda room: si.load(text_model(), room.vlm.processor)),
)


def nan_weights(room: Any) -> Any:
    place = room.folder / "model"
    shutil.copytree(demo_folder("demo"), place)
    weights(lambda found: found[first(found, "q_proj.weight")].fill_(float("nan")))(place)
    return si.run_edits(si.load(place), room.qs[:1], path="packed")


KINDS = [*FOLDERS, *NAMES, Kind("si.load of a folder", "weights of nan", ModelError, "not finite: load intact", nan_weights)]
