"""Augmented images by PyTorch, Pillow and torchvision, for src/data/dsa.rs and src/data/autoaugment.

Run: python tests/golden/views/make.py
Made with Python 3.11, torch 2.15.0, torchvision 0.29.2, numpy 2.4.6, pillow 13.0.0, safetensors 0.8.0 on x86-64.
Tolerance: DSA 1e-5 (computed here in float64, stored as float32); Pillow's bytes and the policy exactly.

dsa.BATCH                            (rows, C, H, W), float32
dsa.BATCH.OP.NUMBER.parameters       (n,), float64
dsa.BATCH.OP.NUMBER.result           as the batch
auto.IMAGE                           (C, H, W), bytes
auto.IMAGE.OP.NUMBER.magnitude       (1,), float64, with its sign
auto.IMAGE.OP.NUMBER.result          as the image
levels.OP                            (10,), float64: the magnitudes of the levels 0 to 9
policy                               (25, 2, 3), float64: number of the operation in OPS, probability, level (-1: none)
"""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageOps
from safetensors.torch import save_file
from torchvision.transforms import AutoAugment, AutoAugmentPolicy

out = {}
rng = np.random.RandomState(0)


# Differentiable siamese augmentation.

def color(x, brightness, saturation, contrast):
    x = x + brightness
    grey = x.mean(dim=1, keepdim=True)
    x = grey + saturation * (x - grey)
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return mean + contrast * (x - mean)


def crop(x, dy, dx):
    pad = max(x.shape[2:])
    wide = F.pad(x, [pad] * 4)
    return wide[:, :, pad + int(dy):, pad + int(dx):][:, :, :x.shape[2], :x.shape[3]]


def cutout(x, row, column):
    x = x.clone()
    height, width = (math.floor(side / 2 + 0.5) for side in x.shape[2:])
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            if 0 <= i - row + height // 2 < height and 0 <= j - column + width // 2 < width:
                x[:, :, i, j] = 0
    return x


def affine(x, theta):
    theta = torch.tensor(theta, dtype=x.dtype).expand(len(x), 2, 3)
    return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)


def rotate(x, degrees):
    angle = math.radians(degrees)
    return affine(x, [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]])


DSA = {
    "color": color,
    "crop": crop,
    "cutout": cutout,
    "flip": lambda x, yes: x.flip(3) if yes else x,
    "scale": lambda x, sx, sy: affine(x, [[sx, 0, 0], [0, sy, 0]]),
    "rotate": rotate,
}
some = [("color", -0.3, 1.7, 0.6), ("color", 0.45, 0.1, 1.4), ("crop", -1, 1), ("crop", 1, 0), ("cutout", 0, 5),
        ("cutout", 4, 3), ("flip", 1), ("flip", 0), ("scale", 0.85, 1.15), ("scale", 1.2, 1 / 1.2), ("rotate", 15),
        ("rotate", -7.3)]
large = [("crop", 4, -3), ("cutout", 32, 11), ("scale", 1.1, 0.9), ("rotate", 11.9)]
batches = [("small", (2, 3, 8, 8), some), ("oblong", (2, 1, 6, 10), some), ("large", (1, 3, 32, 32), large)]
for name, shape, cases in batches:
    batch = torch.tensor(rng.normal(size=shape), dtype=torch.float32)
    out[f"dsa.{name}"] = batch
    for number, (op, *parameters) in enumerate(cases):
        out[f"dsa.{name}.{op}.{number}.parameters"] = torch.tensor(parameters, dtype=torch.float64)
        out[f"dsa.{name}.{op}.{number}.result"] = DSA[op](batch.double(), *parameters).float().contiguous()


# The operations of AutoAugment.

FILL = 128
SIGNED = ["ShearX", "ShearY", "TranslateX", "TranslateY", "Color", "Contrast", "Sharpness", "Brightness"]
OPS = ["ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Color", "Posterize", "Solarize", "Contrast",
       "Sharpness", "Brightness", "AutoContrast", "Equalize", "Invert"]
LEVELS = {
    "ShearX": np.linspace(0, 0.3, 10), "ShearY": np.linspace(0, 0.3, 10),
    "TranslateX": np.linspace(0, 150 / 331, 10), "TranslateY": np.linspace(0, 150 / 331, 10),
    "Rotate": np.linspace(0, 30, 10), "Posterize": np.round(np.linspace(8, 4, 10)), "Solarize": np.linspace(256, 0, 10),
    "Color": np.linspace(0, 0.9, 10), "Contrast": np.linspace(0, 0.9, 10), "Sharpness": np.linspace(0, 0.9, 10),
    "Brightness": np.linspace(0, 0.9, 10),
}


def pillow(op, image, m):
    fill = FILL if image.mode == "L" else (FILL,) * 3

    def warp(matrix, how):
        return image.transform(image.size, Image.Transform.AFFINE, matrix, how, fillcolor=fill)

    bicubic, nearest = Image.Resampling.BICUBIC, Image.Resampling.NEAREST
    return {
        "ShearX": lambda: warp((1, m, 0, 0, 1, 0), bicubic),
        "ShearY": lambda: warp((1, 0, 0, m, 1, 0), bicubic),
        "TranslateX": lambda: warp((1, 0, m * image.width, 0, 1, 0), nearest),
        "TranslateY": lambda: warp((1, 0, 0, 0, 1, m * image.height), nearest),
        # The reference pastes through an alpha channel; with nearest neighbours a fill gives the same bytes.
        "Rotate": lambda: image.rotate(m, nearest, fillcolor=fill),
        "Color": lambda: ImageEnhance.Color(image).enhance(1 + m),
        "Posterize": lambda: ImageOps.posterize(image, int(m)),
        "Solarize": lambda: ImageOps.solarize(image, m),
        "Contrast": lambda: ImageEnhance.Contrast(image).enhance(1 + m),
        "Sharpness": lambda: ImageEnhance.Sharpness(image).enhance(1 + m),
        "Brightness": lambda: ImageEnhance.Brightness(image).enhance(1 + m),
        "AutoContrast": lambda: ImageOps.autocontrast(image),
        "Equalize": lambda: ImageOps.equalize(image),
        "Invert": lambda: ImageOps.invert(image),
    }[op]()


def noisy(c, h, w):
    """Hills of different heights under noise, which leaves out the ends of the range."""
    y, x = np.mgrid[:h, :w]
    hills = [110 + 25 * k * np.sin(y / 5 + k) + 20 * np.cos(x / 3 - k) for k in range(1, c + 1)]
    return np.clip(np.stack(hills) + rng.normal(0, 25, (c, h, w)), 9, 243).astype(np.uint8)


IMAGES = {
    "large": noisy(3, 24, 20),
    "odd": rng.randint(0, 256, (3, 7, 9)).astype(np.uint8),
    "grey": noisy(1, 20, 16),
    "flat": np.full((3, 4, 5), [[[0]], [[77]], [[255]]], np.uint8),
    "thin": rng.randint(0, 256, (3, 2, 9)).astype(np.uint8),
}
for name, pixels in IMAGES.items():
    out[f"auto.{name}"] = torch.tensor(pixels)
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    for op in OPS:
        levels = LEVELS[op][[4, 9] if name == "large" else [0, 2, 3, 7]] if op in LEVELS else [0.0]
        signs = [1, -1] if op in SIGNED else [1]
        for number, m in enumerate(s * m for m in levels for s in signs):
            result = np.asarray(pillow(op, image, m)).reshape(*pixels.shape[1:], -1).transpose(2, 0, 1)
            out[f"auto.{name}.{op}.{number}.magnitude"] = torch.tensor([m], dtype=torch.float64)
            out[f"auto.{name}.{op}.{number}.result"] = torch.tensor(np.ascontiguousarray(result))

for op, levels in LEVELS.items():
    out[f"levels.{op}"] = torch.tensor(levels, dtype=torch.float64)
policies = AutoAugment(AutoAugmentPolicy.CIFAR10).policies
out["policy"] = torch.tensor([[[OPS.index(op), p, -1 if level is None else level] for op, p, level in pair]
                              for pair in policies], dtype=torch.float64)
path = Path(__file__).parent / "views.safetensors"
save_file(out, path)
path.chmod(0o644)
