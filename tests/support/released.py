"""ScAle's release as a plain loop: whole forward and backward passes of single questions, with torch hooks; nothing of the engine.

Written after the settings that its code states (docs/methods.md): 1 + 10 tanh(u), cross-entropy over the vocabulary, 1e-4 * sum u^2,
AdamW of 1e-3 and 1e-6, gradients summed over four questions and clipped at 5, the file's order, the last epoch.
"""

import torch

from tests.support.oracle import plain_inputs


def letter_ids(vlm, question):
    """The last token of " A" and so on, as the tokenizer reads each alone."""
    return [vlm.tokenizer(f" {choice}", add_special_tokens=False)["input_ids"][-1] for choice in question.choices]


def raw_inputs(vlm, question, prompt):
    """The processor's output for one question; prompt: a function of the question's text, or None for the chat template."""
    if prompt is None:
        return plain_inputs(vlm, question)
    bos = vlm.tokenizer.bos_token
    text = prompt(question.text)
    return vlm.processor(text=[text], images=[question.images], return_tensors="pt", add_special_tokens=not (bos and text.startswith(bos)))


class Loop:
    """The loop over one model: u [L, H] and v [L] for heads and MLPs."""

    def __init__(self, vlm, heads=True, mlps=True, prompt=None):
        self.vlm, self.model, self.prompt = vlm, vlm.hf_model, prompt
        self.layers = self.model.get_decoder().layers
        self.n_heads = self.model.config.get_text_config().num_attention_heads
        self.u = torch.zeros(len(self.layers), self.n_heads, requires_grad=True)
        self.v = torch.zeros(len(self.layers), requires_grad=True)
        self.groups = [p for p, on in ((self.u, heads), (self.v, mlps)) if on]
        self.optimiser = torch.optim.AdamW(self.groups, lr=1e-3, eps=1e-6, weight_decay=0.0)

    def scalars(self):
        return 1 + 10 * torch.tanh(self.u), 1 + 10 * torch.tanh(self.v)

    def last_logits(self, question):
        """Logits [V] of one whole forward pass with the scalars in place."""
        scale, mlp = self.scalars()

        def heads(number):
            def hook(module, args):
                z = args[0]
                last = (z[0, -1].view(self.n_heads, -1) * scale[number][:, None]).flatten()
                return (torch.cat([z[:, :-1], last[None, None]], 1), *args[1:])

            return hook

        def mlps(number):
            return lambda module, args, out: torch.cat([out[:, :-1], out[:, -1:] * mlp[number]], 1)

        hooks = [layer.self_attn.o_proj.register_forward_pre_hook(heads(i)) for i, layer in enumerate(self.layers)]
        hooks += [layer.mlp.register_forward_hook(mlps(i)) for i, layer in enumerate(self.layers)]
        try:
            return self.model(**raw_inputs(self.vlm, question, self.prompt), use_cache=False).logits[0, -1].float()
        finally:
            for hook in hooks:
                hook.remove()

    def epoch(self, train, most=None):
        """One pass over the questions in their order; most: stop after so many steps. Returns how many steps were taken."""
        steps = 0
        for number, question in enumerate(train, 1):
            logits = self.last_logits(question)
            right = torch.tensor([letter_ids(self.vlm, question)[question.answer]])
            loss = torch.nn.functional.cross_entropy(logits[None], right) + sum(1e-4 * p.square().sum() for p in self.groups)
            loss.backward()
            if number % 4 == 0 or number == len(train):
                for group in self.groups:
                    torch.nn.utils.clip_grad_norm_([group], 5.0)
                self.optimiser.step()
                self.optimiser.zero_grad()
                steps += 1
                if steps == most:
                    break
        return steps

    @torch.no_grad()
    def accuracy(self, questions):
        right = [int(self.last_logits(q)[letter_ids(self.vlm, q)].argmax()) == q.answer for q in questions]
        return sum(right) / len(right)
