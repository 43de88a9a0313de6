"""Edits by plain torch hooks on the transformers module, one question and one edit at a time; nothing of the engine.

The inputs come from the processor itself, not from `vlm.encode`, so that an input which `encode` loses is missed here.
"""

import sys
from contextlib import contextmanager

import torch


def hooked_logits(model, inputs, scale=None, shift=None, mlp_scale=None, positions=(-1,), use_cache=False):
    """Logits [T, V] of one whole forward pass; scale [L, H], shift [L, H, D], mlp_scale [L] act at `positions`."""
    decoder, hooks = model.get_decoder(), []
    decoder = getattr(decoder, "model", decoder)
    scale, shift, mlp_scale = (part if part is None else part.to(model.device) for part in (scale, shift, mlp_scale))
    H = model.config.get_text_config().num_attention_heads

    def edit_heads(layer):
        def hook(module, args):
            z = args[0].clone()
            for p in positions:
                heads = z[0, p].view(H, -1).clone()
                if scale is not None:
                    heads = heads * scale[layer][:, None]
                if shift is not None:
                    heads = heads + shift[layer][:, : heads.shape[1]]  # Gemma 4's layers differ in the width of a head
                z[0, p] = heads.flatten()
            return (z, *args[1:])

        return hook

    def edit_mlp(layer):
        def hook(module, args, out):
            rest = out[1:] if isinstance(out, tuple) else None
            out = (out if rest is None else out[0]).clone()
            rows = out.view(-1, out.shape[-1])  # one prompt at a time, whatever experts make of its axes
            for p in positions:
                rows[p] = rows[p] * mlp_scale[layer]
            return out if rest is None else (out, *rest)

        return hook

    for number, (output, mlp) in enumerate(heads for layer in decoder.layers if (heads := heads_of(layer))):
        hooks.append(output.register_forward_pre_hook(edit_heads(number)))
        if mlp_scale is not None:
            hooks.append(mlp.register_forward_hook(edit_mlp(number)))
    try:
        return model(**inputs, use_cache=use_cache).logits[0]
    finally:
        for hook in hooks:
            hook.remove()


def heads_of(layer):
    """The module that reads a layer's heads side by side, and its MLP; None for a layer without heads."""
    if not hasattr(layer, "self_attn"):
        return None
    output = layer.self_attn.o_proj if hasattr(layer.self_attn, "o_proj") else layer.self_attn.out_proj
    return output, layer.mlp if hasattr(layer, "mlp") else layer.feed_forward


def plain_inputs(vlm, question):
    """The processor's whole output for one question, on its chat template (PaliGemma has none)."""
    content = [*[{"type": "image"}] * len(question.pictures), {"type": "text", "text": question.text}]
    if vlm.processor.chat_template is None:
        text = "<image>" * len(question.pictures) + "answer en " + question.text
    else:
        text = vlm.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False)
    bos = vlm.tokenizer.bos_token
    special = not (bos and text.startswith(bos))
    out = vlm.processor(
        text=[text], images=[question.images] if question.pictures else None, return_tensors="pt", add_special_tokens=special
    )
    place = vlm.hf_model.device, vlm.hf_model.dtype
    return {k: v.to(*(place if v.is_floating_point() else place[:1])) for k, v in out.items() if k != "labels"}


def hooked_scores(vlm, question, edit, variant, scope="last"):
    """Scores of a question's choices under one variant of an Edit."""
    parts = {
        name: None if part is None else part[variant]
        for name, part in (("scale", edit.scale), ("shift", edit.shift), ("mlp_scale", edit.mlp_scale))
    }
    ids = vlm.choice_ids(question)
    inputs = plain_inputs(vlm, question)
    T = inputs["input_ids"].shape[1]
    with torch.no_grad():
        if max(map(len, ids)) == 1:
            return hooked_logits(vlm.hf_model, inputs, **parts, positions=[T - 1])[-1][[i[0] for i in ids]]
        scores = []
        for choice in ids:
            more = inputs["input_ids"].new_tensor([choice[:-1]])
            longer = inputs | {
                "input_ids": torch.cat([inputs["input_ids"], more], 1),
                "attention_mask": inputs["attention_mask"].new_ones(1, T + len(choice) - 1),
            }
            for name in {"token_type_ids", "mm_token_type_ids"} & inputs.keys():
                # PaliGemma's 1 marks an answer, which the prompt does not see; elsewhere 0 marks text
                longer[name] = torch.cat([inputs[name], torch.full_like(more, int(vlm.family == "paligemma"))], 1)
            positions = range(T - 1, T + len(choice) - 1) if scope == "each_new_token" else [T - 1]
            logits = hooked_logits(vlm.hf_model, longer, **parts, positions=positions).log_softmax(-1)
            scores.append(sum(logits[T - 1 + k, t] for k, t in enumerate(choice)))
        return torch.stack(scores)


def hooked_at(model, inputs, changes, positions):
    """Logits [T, V] of one whole pass; changes: (component, layer among those with heads, function of one position's values)."""
    decoder, hooks = model.get_decoder(), []
    parts = [(layer, *heads) for layer in getattr(decoder, "model", decoder).layers if (heads := heads_of(layer))]

    def on_input(act):
        def hook(module, args, kwargs):
            x = (args[0] if args else kwargs["hidden_states"]).clone()
            for p in positions:
                x[0, p] = act(x[0, p])
            return ((x, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": x})

        return hook

    def on_output(act):
        def hook(module, args, out):
            rest = out[1:] if isinstance(out, tuple) else None
            out = (out if rest is None else out[0]).clone()
            rows = out.view(-1, out.shape[-1])  # one prompt at a time, whatever experts make of its axes
            for p in positions:
                rows[p] = act(rows[p])
            return out if rest is None else (out, *rest)

        return hook

    for component, number, act in changes:
        layer, output, mlp = parts[number]
        if component == "resid":
            hooks.append(layer.register_forward_pre_hook(on_input(act), with_kwargs=True))
        elif component == "head":
            hooks.append(output.register_forward_pre_hook(on_input(act), with_kwargs=True))
        else:
            hooks.append((output if component == "attn" else mlp).register_forward_hook(on_output(act)))
    try:
        with torch.no_grad():
            return model(**inputs, use_cache=False).logits[0]
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def eager_attention(vlm, modules, attend):
    """These modules' attention is attend(module, query, key, value, mask, ...), in the place of the modelling file's eager one."""
    place = sys.modules[type(modules[0]).__module__]
    original, kernel = place.eager_attention_forward, vlm.decoder.config._attn_implementation

    def chosen(module, *args, **kwargs):
        return (attend if module in modules else original)(module, *args, **kwargs)

    place.eager_attention_forward = chosen
    vlm.decoder.set_attn_implementation("eager")
    try:
        yield
    finally:
        place.eager_attention_forward = original
        vlm.decoder.set_attn_implementation(kernel)
