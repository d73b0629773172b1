"""Golden values of the compact networks: forward, gradients and batch-norm statistics from PyTorch in float64.

    python make.py            writes *.safetensors beside this file

Made with PyTorch 2.15.0 and torchvision's layer order, safetensors, on a CPU, in float64. Weights, images and seeds
come from a hash that the tests repeat, so only results are stored: logits, taps, and of every gradient its norm, its
product with a hashed vector and 64 entries at hashed places. Tolerances: the tests state them; float32 is the only
difference.
"""

import copy
import json
import math
import os

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
SAMPLES = 64


def noise(n, salt):
    """n numbers in [-1, 1): murmur3's finaliser of the index, exact in float32."""
    h = (np.arange(n, dtype=np.uint64) + np.uint64(salt) * np.uint64(0x9E3779B1)) & np.uint64(0xFFFFFFFF)
    h ^= h >> np.uint64(16)
    h = h * np.uint64(0x85EBCA6B) & np.uint64(0xFFFFFFFF)
    h ^= h >> np.uint64(13)
    h = h * np.uint64(0xC2B2AE35) & np.uint64(0xFFFFFFFF)
    h ^= h >> np.uint64(16)
    return (h >> np.uint64(8)).astype(np.float64) / (1 << 23) - 1.0


def value(name, shape, salt):
    u = noise(int(np.prod(shape)), salt)
    if name.endswith("running_var"):
        v = 1.0 + 0.5 * u
    elif name.endswith("running_mean"):
        v = 0.1 * u
    elif len(shape) > 1:
        v = u * math.sqrt(6.0 / np.prod(shape[1:]))
    elif name.endswith("weight"):
        v = 1.0 + 0.25 * u
    else:
        v = 0.1 * u
    return torch.from_numpy(v.astype(np.float32).astype(np.float64)).reshape(shape)


class Basic(nn.Module):
    def __init__(self, inputs, out, stride, option_a=False):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.pad = None
        if stride != 1 or inputs != out:
            if option_a:
                self.pad = (out - inputs) // 2
            else:
                self.downsample = nn.Sequential(nn.Conv2d(inputs, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.pad is not None:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        elif hasattr(self, "downsample"):
            x = self.downsample(x)
        return F.relu(y + x)


class Bottleneck(nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        if stride != 1 or inputs != 4 * width:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


class ResNet(nn.Module):
    def __init__(self, stem, pool, stages, head):
        super().__init__()
        self.conv1, self.pool = stem, pool
        self.bn1 = nn.BatchNorm2d(stem.out_channels)
        for i, stage in enumerate(stages):
            setattr(self, f"layer{i + 1}", nn.Sequential(*stage))
        self.stages = len(stages)
        self.head = [name for name, _ in head]
        for name, layer in head:
            setattr(self, name, layer)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        if self.pool:
            x = F.max_pool2d(x, 3, 2, 1)
        for i in range(self.stages):
            x = getattr(self, f"layer{i + 1}")(x)
        taps = {"map": x}
        x = x.mean((2, 3))
        for name in self.head[:-1]:
            x = getattr(self, name)(x)
        taps["feature"] = x
        return getattr(self, self.head[-1])(x), taps


def resnet8(width, mlp=None, classes=10):
    w = [width, 2 * width, 4 * width]
    stages = [[Basic(w[0], w[0], 1)], [Basic(w[0], w[1], 2)], [Basic(w[1], w[2], 2)]]
    head = [("classifier", nn.Linear(w[2], classes))]
    if mlp:
        head = [("add_mlp", nn.Linear(w[2], mlp)), ("classifier", nn.Linear(mlp, classes))]
    return ResNet(nn.Conv2d(3, width, 3, 1, 1, bias=False), False, stages, head)


def resnet20():
    def stage(inputs, out, stride):
        return [Basic(inputs, out, stride, True)] + [Basic(out, out, 1) for _ in range(2)]

    stages = [stage(16, 16, 1), stage(16, 32, 2), stage(32, 64, 2)]
    return ResNet(nn.Conv2d(3, 16, 3, 1, 1, bias=False), False, stages, [("linear", nn.Linear(64, 10))])


def resnet18():
    def stage(inputs, out, stride):
        return [Basic(inputs, out, stride), Basic(out, out, 1)]

    stages = [stage(64, 64, 1), stage(64, 128, 2), stage(128, 256, 2), stage(256, 512, 2)]
    return ResNet(nn.Conv2d(3, 64, 7, 2, 3, bias=False), True, stages, [("fc", nn.Linear(512, 10))])


def resnet50():
    def stage(inputs, width, blocks, stride):
        first = [Bottleneck(inputs, width, stride)]
        return first + [Bottleneck(4 * width, width, 1) for _ in range(blocks - 1)]

    stages = [stage(64, 64, 3, 1), stage(256, 128, 4, 2), stage(512, 256, 6, 2), stage(1024, 512, 3, 2)]
    return ResNet(nn.Conv2d(3, 64, 7, 2, 3, bias=False), True, stages, [("fc", nn.Linear(2048, 10))])


class Cnn(nn.Module):
    """Without dropout: its masks differ by construction."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 64, 3)
        self.fc1, self.fc2 = nn.Linear(12544, 128), nn.Linear(128, 10)

    def forward(self, x):
        m = F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(x)))), 2)
        f = F.relu(self.fc1(m.flatten(1)))
        return self.fc2(f), {"map": m, "feature": f}


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc = nn.Linear(90, 37), nn.Linear(37, 20), nn.Linear(20, 7)

    def forward(self, x):
        x = F.relu(self.fc2(F.relu(self.fc1(x.flatten(1)))))
        return self.fc(x), {"feature": x}


class Zoo(nn.Module):
    """Every operation in an odd shape: the same list as `zoo` in the tests."""

    def __init__(self):
        super().__init__()
        self.norm0 = nn.BatchNorm2d(5)
        self.conv1 = nn.Conv2d(5, 12, 5, 2, 2)
        self.conv2 = nn.Conv2d(12, 18, 3, 1, 1, groups=3, bias=False)
        self.bn2 = nn.BatchNorm2d(18)
        self.conv3 = nn.Conv2d(18, 18, 3, 1, 2, groups=18)
        self.conv4 = nn.Conv2d(18, 20, 3, 2, 1)
        self.conv5 = nn.Conv2d(20, 33, 2, 1, 0, bias=False)
        self.bn5 = nn.BatchNorm2d(33)
        self.conv6 = nn.Conv2d(20, 33, 2, 1, 0, bias=False)
        self.conv7 = nn.Conv2d(33, 70, 4, 3, 3)
        self.fc1 = nn.Linear(420, 19)
        self.fc2 = nn.Linear(19, 4)

    def forward(self, x):
        y = F.max_pool2d(self.conv1(self.norm0(x)), 3, 1, 1)
        y = F.relu(self.bn2(self.conv2(y)))
        taps = {"early": y}
        y = self.conv3(y)
        z = F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1)) + self.conv4(y)
        z = F.relu(F.avg_pool2d(z, 2, 1))
        taps["side"] = z
        z = F.relu(self.bn5(self.conv5(z)) + F.relu(self.conv6(z)))
        z = self.conv7(z)
        return self.fc2(F.relu(self.fc1(z.flatten(1)))), taps


def seeds_of(model_out, taps):
    """The seeds: a hashed vector on the logits and, weaker, on every tap."""
    total = 0.0
    for i, (name, t) in enumerate([("logits", model_out)] + sorted(taps.items())):
        s = torch.from_numpy(noise(t.numel(), 9000 + i)).reshape(t.shape)
        total = total + (t * s).sum() * (1.0 if i == 0 else 0.125)
    return total


# Images of a case, by the noise's salt. With resnet20's, no rectifier's input is closer to zero than 9e-6: one that
# lies within rounding of it would pass the gradient or not, by the order of additions.
IMAGES = {"resnet20": 7804}


def margin(model, x):
    """The smallest distance of a rectifier's input from zero."""
    seen, relu = [], F.relu
    F.relu = lambda t, *rest: (seen.append(t.detach().abs().min().item()), relu(t, *rest))[1]
    with torch.no_grad():
        copy.deepcopy(model)(x)
    F.relu = relu
    return min(seen)


def run(model, config, shape, batch, train, images):
    model = model.double()
    salt = 1
    with torch.no_grad():
        for name, t in model.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                t.copy_(value(name, t.shape, salt))
                salt += 1
    model.train(train)
    x = torch.from_numpy(noise(batch * int(np.prod(shape)), images)).reshape(batch, *shape)
    logits, taps = model(x)
    seeds_of(logits, taps).backward()
    out = {"logits": logits.detach().float().flatten()}
    for name, t in taps.items():
        flat = t.detach().flatten()
        out[f"tap.{name}"] = sample(flat, 5000)
    norms, products, samples, buffers = [], [], [], []
    grads = dict(model.named_parameters())
    for i, (name, t) in enumerate(n for n in model.state_dict().items() if not n[0].endswith("num_batches_tracked")):
        if name in grads:
            g = grads[name].grad.flatten()
            norms.append(g.norm())
            products.append((g * torch.from_numpy(noise(g.numel(), 6000 + i))).sum())
            samples.append(sample(g, 5000 + i))
        else:
            buffers.append(t.flatten())
    out["norms"] = torch.stack(norms).float()
    out["products"] = torch.stack(products).float()
    out["samples"] = torch.cat(samples).float()
    if train and buffers:
        out["buffers"] = torch.cat([sample(b, 4000) for b in buffers]).float()
    meta = {"config": json.dumps(config), "shape": json.dumps(shape), "batch": str(batch)}
    meta |= {"images": str(images), "margin": f"{margin(model, x):.1e}"}
    meta |= {"train": str(int(train)), "torch": torch.__version__}
    return out, meta


def sample(flat, salt):
    """At most SAMPLES entries at hashed places (all, when there are no more)."""
    if flat.numel() <= SAMPLES:
        return flat.detach().float()
    at = ((noise(SAMPLES, salt) + 1.0) / 2.0 * flat.numel()).astype(np.int64)
    return flat.detach()[torch.from_numpy(at)].float()


CASES = {
    "resnet8-tiny": (lambda: resnet8(8), {"kind": "resnet8", "width": 8}, [3, 32, 32], 3, True),
    "resnet8-narrow": (lambda: resnet8(16), {"kind": "resnet8", "width": 16}, [3, 32, 32], 4, True),
    "resnet8-narrow-eval": (lambda: resnet8(16), {"kind": "resnet8", "width": 16}, [3, 32, 32], 4, False),
    "resnet8-wide": (lambda: resnet8(64, 512), {"kind": "resnet8", "width": 64, "mlp": 512}, [3, 32, 32], 2, True),
    "resnet20": (resnet20, {"kind": "resnet20"}, [3, 32, 32], 2, True),
    "resnet18": (resnet18, {"kind": "resnet18"}, [3, 72, 56], 2, True),
    "resnet50": (resnet50, {"kind": "resnet50"}, [3, 96, 96], 4, True),
    "resnet50-eval": (resnet50, {"kind": "resnet50"}, [3, 64, 64], 2, False),
    "cnn": (Cnn, {"kind": "cnn", "dropout_map": 0.0, "dropout_feature": 0.0}, [3, 32, 32], 3, True),
    "zoo": (Zoo, {"kind": "zoo"}, [5, 13, 17], 3, True),
    "zoo-eval": (Zoo, {"kind": "zoo"}, [5, 13, 17], 3, False),
    "mlp": (Mlp, {"kind": "mlp", "hidden": [37, 20]}, [2, 5, 9], 6, True),
}

if __name__ == "__main__":
    for name, (make, config, shape, batch, train) in CASES.items():
        torch.manual_seed(0)
        tensors, meta = run(make(), config, shape, batch, train, IMAGES.get(name, 7777))
        save_file(tensors, os.path.join(HERE, f"{name}.safetensors"), metadata=meta)
        print(name, {k: v.numel() for k, v in tensors.items()})
