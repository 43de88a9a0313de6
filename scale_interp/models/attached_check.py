"""Does `generate` keep its prompts as attached edits expect? Three tokens behind a cache, against whole passes without one."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, requires, version

import torch
from packaging.requirements import Requirement
from transformers import GenerationConfig

from ..interventions.attention.logits import LogitEdit, attach_logits
from ..interventions.check import SAMPLE, TOLERANCE
from ..interventions.prefix import with_answer
from ..interventions.prompt_end import whole_prompt
from ..vlm.vlm import VLM

TOKENS = 3


def tested_transformers() -> bool:
    """Whether the transformers that is installed is one that this package admits, all of whose releases its tests have seen."""
    try:
        needed = [Requirement(line) for line in requires("scale-interp") or ()]
    except PackageNotFoundError:
        return True
    return all(one.specifier.contains(version(one.name)) for one in needed if one.name == "transformers")


@torch.no_grad()
def check_attached(vlm: VLM) -> str | None:
    """Generate with random weights on the attention logits, and compare every token's logits with whole passes.

    Args:
        vlm: The model.

    Returns:
        What is wrong, as a clause; None where both agree.
    """
    inputs, model = dict(vlm.encode(SAMPLE)), vlm.hf_model
    T = inputs["input_ids"].shape[1]
    weight = 0.5 + torch.rand(vlm.n_layers, vlm.n_heads, generator=torch.Generator().manual_seed(0))
    edit = LogitEdit(weight, torch.zeros_like(weight), steps="each_new_token")
    tokens = {name: getattr(model.generation_config, name, None) for name in ("eos_token_id", "pad_token_id", "bos_token_id")}
    config = GenerationConfig(
        do_sample=False, max_new_tokens=TOKENS, min_new_tokens=TOKENS, return_dict_in_generate=True, output_logits=True, **tokens
    )
    try:
        with vlm.alone(), attach_logits(model, edit):
            out = model.generate(**inputs, generation_config=config)
            with whole_prompt(model, inputs, T):
                longer = with_answer(vlm, inputs, out.sequences[:, T:-1])
                whole = model(**longer, use_cache=False).logits[0, T - 1 :].float()
    except Exception as error:  # whatever a new cache or mask raises
        return f"they fail in it ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"
    step = torch.cat(out.logits).float()
    apart = float((step - whole).nan_to_num(float("inf")).abs().max())
    if apart <= TOLERANCE.get(vlm.dtype, TOLERANCE[torch.bfloat16]) * max(1.0, float(whole.abs().max())):
        return None
    return f"its logits are {apart:.2g} from those of whole passes"
