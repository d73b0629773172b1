"""Pretraining through a language model: the loss and its gradients by PyTorch, on the tiny LLaVA of ../llava/default.

    python make.py

H = a W_s r(f) + (1 - a) P(g): f (2, 5, 3, 4) a student's map, r its resampling to the tower's 3x3 grid
(torch.nn.functional.interpolate, bilinear, antialias), W_s a linear layer 5 -> 16, g the tower's features of a.png and
b.png, P the model's projector. The loss is the mean next-token cross-entropy of the answers' tokens.
expected.safetensors: f, student.weight, student.bias, ids (2, T) right-padded with 0, from (2,) where the answer begins,
lengths (2,), and for a = 0, 0.3, 1: loss.<a>; for a = 0.3 grad.f, grad.student.*, grad.projector.*.
resample.safetensors: x (1, 2, 5, 7) and its resampling to 3x3, 8x9 and 5x10.
Tolerances in the test: losses 1e-4 absolute, gradients 1e-4 of each tensor's largest entry, resampling 1e-6.
"""

import pathlib

import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlavaForConditionalGeneration

HERE = pathlib.Path(__file__).parent
LLAVA = HERE.parent / "llava"
model = LlavaForConditionalGeneration.from_pretrained(LLAVA / "default").float().eval()
tokenizer = AutoTokenizer.from_pretrained(LLAVA / "default")
pixels = load_file(LLAVA / "default" / "expected.safetensors")["pixels"]
places, image = 9, 480
prompt = "USER: <image>\nWhat is shown in this image? ASSISTANT:"
answers = [" A red star stands on a table.</s>", " Two boxes.</s>"]


def widen(text):
    return [t for i in tokenizer(text)["input_ids"] for t in ([image] * places if i == image else [i])]


rows = [widen(prompt + a) for a in answers]
start = len(widen(prompt))
T = max(map(len, rows))
ids = torch.tensor([r + [0] * (T - len(r)) for r in rows])
labels = torch.full_like(ids, -100)
for i, r in enumerate(rows):
    labels[i, start:len(r)] = torch.tensor(r[start:])
torch.manual_seed(3)
f = torch.randn(2, 5, 3, 4)
W, b = torch.randn(16, 5) * 0.4, torch.randn(16) * 0.2
P = model.model.multi_modal_projector
with torch.no_grad():
    g = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]


def loss(f, W, b, a):
    student = F.interpolate(f, size=(3, 3), mode="bilinear", antialias=True, align_corners=False).flatten(2).transpose(1, 2)
    H = a * F.linear(student, W, b) + (1 - a) * P(g)
    x = model.get_input_embeddings()(ids).detach()
    x = x.masked_scatter((ids == image)[..., None], H)
    logits = model.lm_head(model.model.language_model(inputs_embeds=x).last_hidden_state)
    return F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1), ignore_index=-100)


for p in (f, W, b):
    p.requires_grad_(True)
out = {"f": f, "student.weight": W, "student.bias": b, "ids": ids, "from": torch.tensor([start, start]),
       "lengths": torch.tensor([len(r) for r in rows])}
for a in (0.0, 1.0):
    out[f"loss.{a}"] = loss(f, W, b, a)
l = loss(f, W, b, 0.3)
l.backward()
out |= {"loss.0.3": l, "grad.f": f.grad, "grad.student.weight": W.grad, "grad.student.bias": b.grad}
out |= {f"grad.projector.{n}": p.grad for n, p in P.named_parameters()}
meta = {"torch": torch.__version__, "transformers": transformers.__version__}
save_file({k: v.detach().contiguous().clone() for k, v in out.items()}, HERE / "expected.safetensors", metadata=meta)
x = torch.randn(1, 2, 5, 7)
r = {f"{h}x{w}": F.interpolate(x, size=(h, w), mode="bilinear", antialias=True, align_corners=False) for h, w in ((3, 3), (8, 9), (5, 10))}
save_file({"x": x} | {k: v.contiguous() for k, v in r.items()}, HERE / "resample.safetensors", metadata=meta)
print({k: float(v) for k, v in out.items() if k.startswith("loss")}, {k: float(v.abs().max()) for k, v in out.items() if k.startswith("grad")})
