"""An exported ResNet-8 in PyTorch, in ten lines; with a run's directory, its test set and logits again.

    python scripts/load_resnet.py RUN --data FOLDER [--stage align]

RUN is a run's directory of a CIFAR-10 or CIFAR-100 config with `evaluate.logits = true`, FOLDER the data set (Parquet, or
the binary version). Prints the accuracy by PyTorch and by us, and the largest difference of a logit; ends with 1 where
the accuracies differ. The recipe alone (README.md) needs torch and safetensors; this also numpy, and for Parquet pyarrow
and pillow.
"""

import argparse
import glob
import io
import json
import os
import sys
import tomllib

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

w = {}  # the model's tensors by name


# The recipe, as README.md has it.
def conv(x, c, b, s=1):  # a convolution and its batch norm
    x = F.conv2d(x, w[c + ".weight"], stride=s, padding=w[c + ".weight"].shape[-1] // 2)
    return F.batch_norm(x, *(w[f"{b}.{n}"] for n in ("running_mean", "running_var", "weight", "bias")))
def resnet8(x):  # (n, 3, 32, 32), normalised by the config's augment.mean and .std
    x = F.relu(conv(x, "conv1", "bn1"))
    for l, s in ("layer1.0.", 1), ("layer2.0.", 2), ("layer3.0.", 2):
        y = conv(F.relu(conv(x, l + "conv1", l + "bn1", s)), l + "conv2", l + "bn2")
        x = F.relu(y + (x if s == 1 else conv(x, l + "downsample.0", l + "downsample.1", s)))
    return F.linear(x.mean((2, 3)), w["classifier.weight"], w["classifier.bias"])
# End of the recipe.


def images(folder):
    """The test images (n, 3, 32, 32) as bytes, in the order of the file."""
    import numpy as np

    for path in glob.glob(os.path.join(folder, "**", "test*.bin"), recursive=True):
        record = 3074 if os.path.basename(path) == "test.bin" else 3073
        rows = np.fromfile(path, dtype=np.uint8).reshape(-1, record)
        return torch.from_numpy(rows[:, -3072:].reshape(-1, 3, 32, 32).copy())
    import pyarrow.parquet as pq
    from PIL import Image

    found = []
    for path in sorted(glob.glob(os.path.join(folder, "**", "test*.parquet"), recursive=True)):
        column = pq.read_table(path, columns=["img"])["img"].to_pylist()
        found += [np.asarray(Image.open(io.BytesIO(i["bytes"])).convert("RGB")) for i in column]
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("run")
    p.add_argument("--data", required=True)
    p.add_argument("--stage", default="finetune")
    a = p.parse_args()
    with open(os.path.join(a.run, "config.toml"), "rb") as f:
        augment = tomllib.load(f)["augment"]
    mean, std = (torch.tensor(augment[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    w.update(load_file(os.path.join(a.run, a.stage, "model.safetensors")))
    x = (images(a.data).float() / 255 - mean) / std
    logits = torch.cat([resnet8(part) for part in x.split(500)])
    ours = load_file(os.path.join(a.run, "logits.safetensors"))
    labels = ours["labels"].long()
    accuracy = [(z.argmax(1) == labels).float().mean().item() for z in (logits, ours["logits"])]
    with open(os.path.join(a.run, "eval.json")) as f:
        said = json.load(f)["stages"][a.stage]["overall"]
    off = (logits - ours["logits"]).abs().max().item()
    print(json.dumps({"torch": accuracy[0], "logits": accuracy[1], "eval.json": said, "largest difference": off}))
    return accuracy[0] != accuracy[1] or abs(accuracy[0] - said) > 1e-6


if __name__ == "__main__":
    sys.exit(main())
