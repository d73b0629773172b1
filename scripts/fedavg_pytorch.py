"""FedAvg in PyTorch, written without a look at the Rust code's results: on its split and cohorts, with its own start,
shuffles and augmentation draws. One JSON line a round: {"round", "loss", "accuracy", "seconds", "evaluation"}.

    fedllava split export configs/cifar10-lt/quick.toml split.json
    python scripts/fedavg_pytorch.py split.json out.jsonl --data $FEDLLAVA_DATA/cifar10 --seed 1 --rounds 100

Needs torch, numpy, pyarrow, pillow. The protocol is CReFF's as configs/cifar10-lt/quick.toml states it: ResNet-8
16-32-64, plain SGD 0.1, batches of 32 (the last one shorter), normalise, then pad 4 with zeros, crop and flip once a
batch; every entry of the state, batch-norm statistics included, is averaged by the number of samples.
"""

import argparse
import glob
import io
import json
import os
import time

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
TESTED = 50  # images at a time; from 64 on the activations take fresh pages from the system for every batch


class Block(nn.Module):
    def __init__(self, inputs, out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample = nn.Identity()
        if stride != 1 or inputs != out:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.downsample(x))


def resnet8(width, classes):
    net = nn.Sequential(
        nn.Conv2d(3, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        Block(width, width, 1),
        Block(width, 2 * width, 2),
        Block(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, classes),
    )
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
    return net


def read(folder, part):
    """Images (n, 3, 32, 32), normalised, and labels of one part, shards in name order."""
    images, labels = [], []
    for path in sorted(glob.glob(os.path.join(folder, f"{part}*.parquet"))):
        table = pq.read_table(path, columns=["img", "label"])
        images += [np.asarray(Image.open(io.BytesIO(i["bytes"])).convert("RGB")) for i in table["img"].to_pylist()]
        labels += table["label"].to_pylist()
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return x, torch.tensor(labels)


def normalise(x):
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    return ((x.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def augment(x, draw):
    top, left, flip = (int(draw.integers(n)) for n in (9, 9, 2))
    x = F.pad(x, (4, 4, 4, 4))[:, :, top : top + 32, left : left + 32]
    return (x.flip(3) if flip else x).contiguous(memory_format=torch.channels_last)


def train(net, x, y, ids, draw, a):
    """Local epochs on one client; the summed loss and the samples seen."""
    net.train()
    optimiser = torch.optim.SGD(net.parameters(), lr=a.lr)
    total = 0.0
    for _ in range(a.epochs):
        order = torch.from_numpy(draw.permutation(ids))
        for batch in order.split(a.batch):
            optimiser.zero_grad()
            loss = F.cross_entropy(net(augment(normalise(x[batch]), draw)), y[batch])
            loss.backward()
            optimiser.step()
            total += loss.item() * len(batch)
    return total, a.epochs * len(ids)


@torch.inference_mode()
def accuracy(net, x, y):
    net.eval()
    right = sum((net(normalise(b)).argmax(1) == t).sum().item() for b, t in zip(x.split(TESTED), y.split(TESTED)))
    return right / len(y)


def one_round(net, state, split, cohort, x, y, draw, a):
    """The next global state and the mean training loss."""
    total = {k: torch.zeros_like(v, dtype=torch.float64) for k, v in state.items()}
    loss, seen, weight = 0.0, 0, 0
    for client in cohort:
        net.load_state_dict(state)
        ids = np.asarray(split["clients"][client])
        part = train(net, x, y, ids, draw, a)
        loss, seen, weight = loss + part[0], seen + part[1], weight + len(ids)
        for k, v in net.state_dict().items():
            total[k] += len(ids) * v.double()
    return {k: (v / weight).to(state[k].dtype) for k, v in total.items()}, loss / seen


def options():
    p = argparse.ArgumentParser()
    p.add_argument("split")
    p.add_argument("out")
    p.add_argument("--data", required=True)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--rounds", type=int, default=100)
    p.add_argument("--epochs", type=int, default=2)
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--lr", type=float, default=0.1)
    p.add_argument("--width", type=int, default=16)
    p.add_argument("--threads", type=int, default=1)
    return p


def begin(a):
    """The split, both parts' images and labels, the network at its start, and the generator of the clients' draws."""
    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    with open(a.split) as f:
        split = json.load(f)
    x, y = read(a.data, "train")
    test = read(a.data, "test")
    if split["images"] != len(y) or [int((y == c).sum()) for c in range(split["classes"])].count(0):
        raise SystemExit(f"{a.split} was made for {split['images']} images, {a.data} has {len(y)}")
    if len(split["cohorts"]) < a.rounds:
        raise SystemExit(f"{a.split} has cohorts for {len(split['cohorts'])} rounds, {a.rounds} are asked")
    net = resnet8(a.width, split["classes"]).to(memory_format=torch.channels_last)
    return split, (x, y), test, net, np.random.default_rng(a.seed)


def main():
    a = options().parse_args()
    split, (x, y), test, net, draw = begin(a)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    with open(a.out, "w", buffering=1) as out:
        for r in range(a.rounds):
            start = time.perf_counter()
            state, loss = one_round(net, state, split, split["cohorts"][r], x, y, draw, a)
            trained = time.perf_counter()
            net.load_state_dict(state)
            record = {"round": r + 1, "loss": loss, "accuracy": accuracy(net, *test), "seconds": trained - start}
            out.write(json.dumps({**record, "evaluation": time.perf_counter() - trained}) + "\n")


if __name__ == "__main__":
    main()
