"""Small random Llamas saved by transformers, and what transformers and PyTorch compute with them.

    python make.py

Each folder: config.json and model.safetensors as `save_pretrained` writes them, and expected.safetensors:
  ids (2, 12), logits (2, 12, V), loss (next-token cross-entropy over ids), grad.<name> for every tensor,
  grad.inputs_embeds (2, 12, D); prompt (1, 5), greedy (1, 5+20) continuing it;
  padded (2, 9) left-padded with pads (2,), padded_logits (2, V) after the last token, padded_greedy (2, 9+8).
Tolerances in the test: logits 1e-4 absolute, gradients 1e-4 of each tensor's largest entry, tokens exact.
"""

import json
import pathlib
import sys

import torch
import transformers
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

HERE = pathlib.Path(__file__).parent
BASE = dict(vocab_size=61, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=64, initializer_range=0.3, eos_token_id=None, bos_token_id=1, pad_token_id=0)
SHAPES = {
    "plain": dict(num_key_value_heads=4),
    "gqa-tied-linear": dict(num_key_value_heads=2, tie_word_embeddings=True,
                            rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}),
    "mqa-bias-llama3": dict(num_key_value_heads=1, head_dim=8, attention_bias=True, mlp_bias=True, rms_norm_eps=1e-5,
                            rope_parameters={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                             "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
                                             "rope_theta": 100.0}),
}


def numbers(model):
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 61, (2, 12), generator=g)
    embeds = model.get_input_embeddings()(ids).detach().requires_grad_(True)
    # One graph for the tensors, one for the input embeddings.
    out = model(input_ids=ids, labels=ids)
    out.loss.backward()
    grads = {f"grad.{n}": p.grad.clone() for n, p in model.named_parameters()}
    model(inputs_embeds=embeds, labels=ids).loss.backward()
    prompt = ids[:1, :5]
    padded = torch.randint(2, 61, (2, 9), generator=g)
    padded[1, :4] = 0
    mask = torch.ones_like(padded)
    mask[1, :4] = 0
    with torch.no_grad():
        kwargs = dict(do_sample=False, use_cache=True)
        greedy = model.generate(prompt, max_new_tokens=20, **kwargs)
        padded_greedy = model.generate(padded, attention_mask=mask, max_new_tokens=8, **kwargs)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        padded_logits = model(padded, attention_mask=mask, position_ids=positions).logits[:, -1]
    return dict(ids=ids, logits=out.logits.detach(), loss=out.loss.detach(), prompt=prompt, greedy=greedy,
                padded=padded, pads=torch.tensor([0, 4]), padded_logits=padded_logits, padded_greedy=padded_greedy,
                **grads, **{"grad.inputs_embeds": embeds.grad})


for name, extra in SHAPES.items():
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**BASE, **extra})).float().eval()
    for n, p in model.named_parameters():  # norms and biases away from 1 and 0
        if p.dim() == 1:
            p.data += 0.3 * torch.randn_like(p)
    folder = HERE / name
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    tensors = {k: v.contiguous().clone() for k, v in numbers(model).items()}
    meta = {"torch": torch.__version__, "transformers": transformers.__version__, "python": sys.version.split()[0]}
    save_file(tensors, folder / "expected.safetensors", metadata=meta)
    print(name, float(tensors["loss"]), tensors["greedy"].tolist())
