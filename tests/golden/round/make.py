"""One round of FedAvg by hand in PyTorch, from an exported split and given weights.

    python make.py            writes round.safetensors beside this file

Made with PyTorch 2.15.0 in float64 on a CPU. Full batches, no augmentation, one local step of SGD 0.1; the server
averages every entry of the state by sample counts. Images and weights come from the hash of ../net/make.py, labels are
the index modulo 10, the split is split.json. Tolerance of the test: 1e-5 of the largest entry.
"""

import json
import os
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "net"))
from make import noise, resnet8, value  # noqa: E402

IMAGES = 24


def weights(model):
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    return {name: value(name, tuple(t.shape), i + 1) for i, (name, t) in enumerate(state.items())}


if __name__ == "__main__":
    split = json.load(open(os.path.join(HERE, "split.json")))
    x = torch.from_numpy(noise(IMAGES * 3 * 32 * 32, 7777)).reshape(IMAGES, 3, 32, 32)
    y = torch.arange(IMAGES) % 10
    start = weights(resnet8(4).double())
    total = sum(len(c) for c in split["clients"])
    mean = {name: torch.zeros_like(t) for name, t in start.items()}
    for client in split["clients"]:
        model = resnet8(4).double()
        model.load_state_dict(start, strict=False)
        model.train()
        out = model(x[client])
        logits = out[0] if isinstance(out, tuple) else out
        F.cross_entropy(logits, y[client]).backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad
        state = model.state_dict()
        for name in mean:
            mean[name] += len(client) / total * state[name]
    save_file({k: v.float().contiguous() for k, v in mean.items()}, os.path.join(HERE, "round.safetensors"))
    print({k: float(v.abs().max()) for k, v in list(mean.items())[:3]})
