"""Photographs from files to normalised batches: ours beside torchvision's DataLoader on Pillow, in turn.

    binary=$(cargo bench --bench loader --no-run 2>&1 | sed -n 's/.*Executable.*(\\(.*\\))$/\\1/p')
    python scripts/bench_loader.py $binary PHOTOS [--rounds 5] [--count 2000] [--quality 90] [--python OTHER/bin/python]

PHOTOS is a folder of photographs; of them the script makes `count` JPEGs as ImageNet has them (500 x 375 and 375 x 500,
of this quality), into a temporary folder or --folder. Both sides read those files, 64 a batch, to float32 (64, 3, 224, 224).

`one core` pins both sides to one processor (no worker processes there); `2 workers` has two worker threads here and two
worker processes there. Times are milliseconds a picture: the processor's (all threads and processes; little moved by other
work on the machine) and the clock's; ratios are theirs over ours, medians over the rounds, smallest and greatest beside.
--python names another interpreter whose Pillow is used there (Pillow-SIMD).
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CASES = ["train", "jitter", "evaluate"]


def make(photos, folder, count, quality):
    from PIL import Image

    sources = sorted(p for p in Path(photos).rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not sources:
        raise SystemExit(f"{photos}: no photographs")
    rng = random.Random(0)
    for i in range(count):
        image = Image.open(sources[i % len(sources)]).convert("RGB")
        width, height = (500, 375) if image.width >= image.height else (375, 500)
        # Another part each time, with the sides of the target.
        share = rng.uniform(0.7, 1.0)
        wide = min(image.width, image.height * width / height) * share
        high = wide * height / width
        left, top = rng.uniform(0, image.width - wide), rng.uniform(0, image.height - high)
        image = image.resize((width, height), Image.LANCZOS, box=(left, top, left + wide, top + high))
        image.save(folder / f"{i:05}.jpg", quality=quality)


def theirs(folder, case, workers):
    import torch
    import torchvision.transforms as T
    from PIL import Image

    class Files(torch.utils.data.Dataset):
        def __init__(self):
            self.paths = sorted(Path(folder).iterdir())
            jitter = [T.ColorJitter(0.4, 0.4, 0.4, 0)] if case == "jitter" else []
            crop = [T.Resize(256), T.CenterCrop(224)] if case == "evaluate" else \
                [T.RandomResizedCrop(224), T.RandomHorizontalFlip(), *jitter]
            self.transform = T.Compose([*crop, T.ToTensor(), T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])

        def __len__(self):
            return len(self.paths)

        def __getitem__(self, i):
            if case == "bare":
                Image.open(self.paths[i]).convert("RGB")
                return 0
            with open(self.paths[i], "rb") as file:
                return self.transform(Image.open(file).convert("RGB"))

    def processor():
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(u.ru_utime + u.ru_stime for u in used)

    torch.set_num_threads(1)
    loader = torch.utils.data.DataLoader(Files(), batch_size=64, num_workers=workers)
    begin, cpu, pictures = time.perf_counter(), processor(), 0
    for batch in loader:
        pictures += len(batch)
    wall = time.perf_counter() - begin
    # Worker processes end with the iterator.
    print(json.dumps({"pictures": pictures, "wall": wall, "cpu": processor() - cpu}))


def run(command, pinned):
    pin = (lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})) if pinned else None
    out = json.loads(subprocess.run(command, check=True, capture_output=True, preexec_fn=pin, text=True).stdout)
    return {name: 1e3 * out[name] / out["pictures"] for name in ("wall", "cpu")}


def told(values):
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def compare(a, folder, case, workers):
    pinned = workers == 1
    ours, other = [], []
    for _ in range(a.rounds):
        ours.append(run([a.binary, str(folder), case, str(workers)], pinned))
        there = ["--side", str(folder), case, str(0 if pinned else workers)]
        other.append(run([a.python, __file__, *there], pinned))
    name = f"{case}, {'one core' if pinned else f'{workers} workers'}"
    for kind in ("cpu", "wall"):
        mine, its = [o[kind] for o in ours], [o[kind] for o in other]
        ratio = told([t / o for o, t in zip(mine, its)])
        print(f"{name:22} {kind:4}: ours {statistics.median(mine):6.3f} ms, theirs {statistics.median(its):6.3f} ms, "
              f"ratio {ratio}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("photos")
    parser.add_argument("--folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--quality", type=int, default=90)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--cases", nargs="+", default=CASES)
    a = parser.parse_args()
    versions = "import PIL, torch, torchvision as t; print('torch', torch.__version__, 'torchvision', t.__version__, " \
        "'Pillow', PIL.__version__)"
    print(subprocess.run([a.python, "-c", versions], check=True, capture_output=True, text=True).stdout.strip())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(a.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not any(folder.iterdir()):
            make(a.photos, folder, a.count, a.quality)
        sizes = [p.stat().st_size for p in folder.iterdir()]
        print(f"{len(sizes)} JPEGs, {statistics.mean(sizes) / 1024:.0f} KiB on average")
        floor = {name: [] for name in ("bare", "whole", "crop", "Pillow")}
        for _ in range(a.rounds):
            for name in ("bare", "whole", "crop"):
                floor[name].append(run([a.binary, str(folder), name, "1"], True)["cpu"])
            floor["Pillow"].append(run([a.python, __file__, "--side", str(folder), "bare", "0"], True)["cpu"])
        print("decoding alone, processor ms: whole by the image crate {}, by ours {}, training's crops by ours {}, "
              "whole by Pillow {}".format(*(told(floor[n]) for n in ("bare", "whole", "crop", "Pillow"))), flush=True)
        for case in a.cases:
            for workers in (1, 2):
                compare(a, folder, case, workers)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        theirs(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main()
