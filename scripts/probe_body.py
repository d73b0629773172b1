"""How good are the features that a run's body has: linear heads fitted to them with balanced images, in PyTorch.

    python scripts/probe_body.py RUN --data FOLDER [--per-class 50 500 5000]

RUN is the directory of a CIFAR-10 run with a ResNet-8, FOLDER the data set (Parquet). For each number of training images
a class (the first ones of the file, all with their labels, which no client has so many of: the largest number is a bound
for methods that repair the head alone, such as CCVR), prints test accuracy and that of many, medium and few (classes 0
to 2, 3 to 6, 7 to 9) of the run's own head and of the fitted one. Needs torch, numpy, safetensors, pyarrow, pillow.
"""

import argparse
import glob
import io
import os

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import load_resnet

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def read(folder, part):
    import pyarrow.parquet as pq
    from PIL import Image

    (path,) = glob.glob(os.path.join(folder, f"{part}*.parquet"))
    table = pq.read_table(path)
    pixels = [np.asarray(Image.open(io.BytesIO(i["bytes"])).convert("RGB")) for i in table["img"].to_pylist()]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2), torch.tensor(table["label"].to_pylist())


def features(x):
    """The body's output (n, width): the recipe's network with a head that lets it through."""
    w = load_resnet.w
    width = w["classifier.weight"].shape[1]
    w["classifier.weight"], w["classifier.bias"] = torch.eye(width), torch.zeros(width)
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    with torch.no_grad():
        return torch.cat([load_resnet.resnet8((b.float() / 255 - mean) / std) for b in x.split(1000)])


def fit(x, y, classes, decay=1e-4):
    """Multinomial logistic regression to convergence, on standardised features."""
    w = torch.zeros(classes, x.shape[1], requires_grad=True)
    b = torch.zeros(classes, requires_grad=True)
    solver = torch.optim.LBFGS([w, b], max_iter=500, history_size=20, line_search_fn="strong_wolfe")

    def closure():
        solver.zero_grad()
        loss = F.cross_entropy(x @ w.T + b, y) + decay * (w * w).sum()
        loss.backward()
        return loss

    solver.step(closure)
    return w.detach(), b.detach()


def told(name, logits, y):
    hit = (logits.argmax(1) == y).float()
    group = lambda low, high: 100 * hit[(y >= low) & (y <= high)].mean().item()
    print(f"{name:28} {100 * hit.mean().item():5.1f}  {group(0, 2):5.1f} {group(3, 6):5.1f} {group(7, 9):5.1f}")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("run")
    p.add_argument("--data", required=True)
    p.add_argument("--per-class", type=int, nargs="+", default=[50, 500, 5000])
    a = p.parse_args()
    load_resnet.w.update(load_file(os.path.join(a.run, "finetune", "model.safetensors")))
    head = load_resnet.w["classifier.weight"].clone(), load_resnet.w["classifier.bias"].clone()
    (x, y), (tx, ty) = (read(a.data, part) for part in ("train", "test"))
    x, tx = features(x), features(tx)
    print(f"{'head':28} {'all':>5}  {'many':>5} {'med.':>5} {'few':>5}")
    told("the run's own", tx @ head[0].T + head[1], ty)
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, tx = (x - mean) / std, (tx - mean) / std
    for n in a.per_class:
        chosen = torch.cat([(y == c).nonzero()[:n, 0] for c in range(len(head[0]))])
        w, b = fit(x[chosen], y[chosen], len(head[0]))
        told(f"fitted, {n} images a class", tx @ w.T + b, ty)


if __name__ == "__main__":
    main()
