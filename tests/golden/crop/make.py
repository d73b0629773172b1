"""Crops, resizes, changes of colour and their parameters by torchvision on Pillow images, for src/data/crop.

Run: python tests/golden/crop/make.py
Made with Python 3.11, torch 2.15.0, torchvision 0.29.2, numpy 2.4.6, pillow 13.0.0, safetensors 0.8.0 on x86-64.
Tolerance: bytes, sizes and places exactly; the normalised picture exactly (float32); distributions by the greatest
distance between two distribution functions, 0.015.

image.NAME                       (H, W, 3), bytes
crop.NAME.N.parameters           top, left, height, width, side, flip, int64: F.resized_crop, then F.hflip
crop.NAME.N.result               (3, side, side), bytes
centre.NAME.N.parameters         resize, side, int64: Resize(resize), then CenterCrop(side)
centre.NAME.N.result             (3, side, side), bytes
jitter.N.steps                   (steps, 2), float64: 0 brightness, 1 contrast, 2 saturation, 3 hue; its factor
jitter.N.result                  (3, H, W) of image.even, bytes
normal                           (3, 24, 24) of crop.wide.0, float32: ToTensor, Normalize
attempts.N.draws                 (10, 2), float64: share of the area, width over height; as many as RandomResizedCrop looked at
attempts.N.case                  rows, columns, top, left, height, width, int64, where every random place is 0
drawn.NAME.size                  rows, columns
drawn.NAME.quantiles             (4, 101), float64: share of the area, log of width over height, place of the crop from top
                                 and from left (0 to 1), of 40,000 crops
colours.quantiles                (4, 101), float64: factors of brightness, contrast, saturation, hue of 40,000 jitters
"""

import math
import unittest.mock as mock
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms as T
import torchvision.transforms.functional as F
from PIL import Image
from safetensors.torch import save_file

out = {}
rng = np.random.RandomState(0)
torch.manual_seed(0)


def noisy(h, w):
    y, x = np.mgrid[:h, :w]
    hills = [120 + 30 * k * np.sin(y / 7 + k) + 25 * np.cos(x / 5 - k) for k in range(1, 4)]
    return np.clip(np.stack(hills, -1) + rng.normal(0, 30, (h, w, 3)), 0, 255).astype(np.uint8)


def planes(image):
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())


# Bytes, given the parameters.

IMAGES = {
    "wide": noisy(45, 61), "high": noisy(83, 40), "line": noisy(3, 70), "dot": noisy(1, 1), "even": noisy(20, 24),
    "post": noisy(90, 4),
}
CROPS = {
    "wide": [(3, 5, 30, 41, 24, 0), (3, 5, 30, 41, 24, 1), (0, 0, 45, 61, 7, 0), (44, 60, 1, 1, 5, 0),
             (10, 20, 24, 24, 24, 1), (1, 2, 9, 50, 33, 0)],
    "high": [(0, 0, 83, 40, 39, 0), (2, 1, 80, 8, 7, 1), (5, 0, 60, 40, 40, 0), (80, 38, 3, 2, 17, 1)],
    "line": [(0, 3, 3, 60, 8, 1)], "dot": [(0, 0, 1, 1, 4, 0)], "post": [(1, 0, 88, 4, 6, 0), (1, 1, 88, 2, 3, 1)],
}
for name, image in IMAGES.items():
    out[f"image.{name}"] = torch.from_numpy(image.copy())
for name, cases in CROPS.items():
    for n, (top, left, height, width, side, flip) in enumerate(cases):
        image = F.resized_crop(Image.fromarray(IMAGES[name]), top, left, height, width, [side, side])
        image = F.hflip(image) if flip else image
        out[f"crop.{name}.{n}.parameters"] = torch.tensor([top, left, height, width, side, flip])
        out[f"crop.{name}.{n}.result"] = planes(image)
        if (name, n) == ("wide", 0):
            normalise = T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
            out["normal"] = normalise(T.ToTensor()(image))
for name, cases in {"wide": [(32, 28), (45, 45), (51, 32), (64, 56), (8, 3)], "high": [(40, 35), (17, 17), (9, 4)],
                    "line": [(3, 3), (4, 2)], "dot": [(9, 8)], "post": [(4, 4), (5, 3)], "even": [(23, 20)]}.items():
    for n, (resize, side) in enumerate(cases):
        image = T.Compose([T.Resize(resize), T.CenterCrop(side)])(Image.fromarray(IMAGES[name]))
        out[f"centre.{name}.{n}.parameters"] = torch.tensor([resize, side])
        out[f"centre.{name}.{n}.result"] = planes(image)
CHANGES = [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue]
for n, steps in enumerate([[(0, 1.37)], [(0, 0.61)], [(1, 1.4)], [(1, 0.6)], [(2, 1.33)], [(2, 0.7)], [(3, 0.25)], [(3, -0.4)],
                           [(3, 0.5)], [(3, 0.013)], [(2, 1.2), (0, 0.8), (3, -0.1), (1, 1.3)],
                           [(1, 0.66), (3, 0.31), (2, 0.62), (0, 1.39)]]):
    image = Image.fromarray(IMAGES["even"])
    for change, factor in steps:
        image = CHANGES[change](image, factor)
    out[f"jitter.{n}.steps"] = torch.tensor(steps, dtype=torch.float64)
    out[f"jitter.{n}.result"] = planes(image)


# Sizes and places from the numbers drawn.

class Drawn:
    """Stands for torch.empty(1): uniform_ gives the next number of a list between its bounds."""

    def __init__(self, numbers):
        self.numbers = iter(numbers)
        self.shares, self.ratios = [], []

    def uniform_(self, low, high):
        value = torch.tensor([low + (high - low) * next(self.numbers)], dtype=torch.float32)
        if low > 0:
            self.shares.append(value.item())
        return value

    def exp(self, value):
        self.ratios.append(math_exp(value).item())
        return math_exp(value)


math_exp = torch.exp
CASES = [(375, 500)] * 12 + [(500, 375)] * 6 + [(40, 300)] * 6 + [(300, 40)] * 6 + [(1, 90), (90, 1), (2, 3), (9, 13), (1, 1)] * 2
for n, (height, width) in enumerate(CASES):
    drawn = Drawn(rng.uniform(size=20))
    with mock.patch("torch.empty", lambda _: drawn), mock.patch("torch.exp", drawn.exp), \
            mock.patch("torch.randint", lambda low, high, size: torch.tensor([low])):
        place = T.RandomResizedCrop.get_params(torch.zeros(3, height, width), [0.08, 1.0], [3 / 4, 4 / 3])
    pairs = list(zip(drawn.shares, drawn.ratios))
    out[f"attempts.{n}.draws"] = torch.tensor(pairs, dtype=torch.float64)
    out[f"attempts.{n}.case"] = torch.tensor([height, width, *place])


# Distributions.

def quantiles(rows):
    return torch.from_numpy(np.quantile(np.array(rows, float), np.linspace(0, 1, 101), axis=0).T.copy())


for name, (height, width) in {"photo": (375, 500), "panorama": (100, 300)}.items():
    rows = []
    for _ in range(40_000):
        i, j, h, w = T.RandomResizedCrop.get_params(torch.zeros(1, height, width), [0.08, 1.0], [3 / 4, 4 / 3])
        rows.append((h * w / (height * width), math.log(w / h), i / max(height - h, 1), j / max(width - w, 1)))
    out[f"drawn.{name}.size"] = torch.tensor([height, width])
    out[f"drawn.{name}.quantiles"] = quantiles(rows)
jitter = T.ColorJitter(0.4, 0.3, 0.2, 0.1)
rows = [[float(v) for v in jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)[1:]]
        for _ in range(40_000)]
out["colours.quantiles"] = quantiles(rows)

save_file({name: tensor.contiguous() for name, tensor in sorted(out.items())}, Path(__file__).parent / "crop.safetensors")
