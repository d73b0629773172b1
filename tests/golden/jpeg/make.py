"""JPEGs and what Pillow decodes of them, for src/data/jpeg.

Run: python tests/golden/jpeg/make.py
Made with Python 3.11, numpy 2.4.6, pillow 13.0.0 (libjpeg-turbo 3.2.0), torch 2.15.0, safetensors 0.8.0 on x86-64.
Tolerance: none, every byte.

file.NAME            the file
whole.NAME           (H, W, 3), bytes
draft.NAME.SIDE      the same at SIDE / 8 of the size, SIDE 4, 2 or 1, as draft() gives it
other.NAME           files that are left to the general decoder: progressive, CMYK, turned by EXIF, RGB
"""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

out = {}
rng = np.random.RandomState(0)


def noisy(h, w):
    y, x = np.mgrid[:h, :w]
    hills = [120 + 30 * k * np.sin(y / 7 + k) + 25 * np.cos(x / 5 - k) for k in range(1, 4)]
    return Image.fromarray(np.clip(np.stack(hills, -1) + rng.normal(0, 20, (h, w, 3)), 0, 255).astype(np.uint8))


def written(image, **how):
    file = io.BytesIO()
    image.save(file, "jpeg", **how)
    return file.getvalue()


def tensor(data):
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


FILES = {
    "quarter": written(noisy(48, 64), quality=90),
    "half": written(noisy(40, 50), quality=80, subsampling=1),
    "full": written(noisy(33, 47), quality=75, subsampling=0),
    "grey": written(noisy(30, 41).convert("L"), quality=85),
    "odd": written(noisy(37, 51), quality=60, subsampling=2, restart_marker_blocks=3, optimize=True),
    "rows": written(noisy(41, 35), quality=95, subsampling=1, restart_marker_rows=1),
    "best": written(noisy(25, 26), quality=100, subsampling=2),
    "coarse": written(noisy(50, 31), quality=3, subsampling=2),
    "small": written(noisy(5, 6), quality=90, subsampling=2),
    "narrow": written(noisy(60, 9), quality=90, subsampling=0),
}
for name, data in FILES.items():
    image = Image.open(io.BytesIO(data))
    width, height = image.size
    out[f"file.{name}"] = tensor(data)
    out[f"whole.{name}"] = torch.from_numpy(np.array(image.convert("RGB")))
    for side in (4, 2, 1):
        image = Image.open(io.BytesIO(data))
        image.draft(image.mode, (max(1, width * side // 8), max(1, height * side // 8)))
        if image.size == (-(-width * side // 8), -(-height * side // 8)):
            out[f"draft.{name}.{side}"] = torch.from_numpy(np.array(image.convert("RGB")))
exif = Image.Exif()
exif[0x0112] = 6
out["other.progressive"] = tensor(written(noisy(20, 20), progressive=True))
out["other.cmyk"] = tensor(written(noisy(20, 20).convert("CMYK")))
out["other.turned"] = tensor(written(noisy(20, 24), exif=exif))
out["other.rgb"] = tensor(written(noisy(20, 20), keep_rgb=True))
save_file(dict(sorted(out.items())), Path(__file__).parent / "jpeg.safetensors")
