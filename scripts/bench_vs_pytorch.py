"""Interleaved timings of the CPU engine and of PyTorch on the same cores; see bench_vs_pytorch.sh.

    bench_vs_pytorch.py VERSUS_BINARY [--rows narrow,wide,cnn] [--rounds 3] [--seconds 2] [--cores 2]
    bench_vs_pytorch.py --torch NET MODE BATCH THREADS SECONDS LAYOUT      (one PyTorch process, used by the above)
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "tests", "golden", "net"))
STEPS = 20
ROWS = {
    "narrow": ("narrow", "train", 32),
    "wide": ("wide", "train", 32),
    "wide-winograd": ("wide+winograd", "train", 32),
    "wide-avx512": ("wide+avx512", "train", 32),
    "cnn": ("cnn", "train", 10),
    "narrow-eval": ("narrow", "infer", 100),
    "wide-eval": ("wide", "infer", 100),
    "resnet18": ("resnet18", "train", 8),
    "resnet50": ("resnet50", "train", 8),
}
TUNED = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "1073741824"}


def torch_side(net, mode, batch, threads, seconds, layout):
    import make
    import numpy as np
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(threads)
    nets = {"narrow": lambda: make.resnet8(16), "wide": lambda: make.resnet8(64), "cnn": make.Cnn}
    nets |= {"resnet18": make.resnet18, "resnet50": make.resnet50}
    model = nets[net]()
    shape = [3, 224, 224] if net.startswith("resnet") else [3, 32, 32]
    salt = 1
    with torch.no_grad():
        for name, t in model.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                t.copy_(make.value(name, t.shape, salt))
                salt += 1
    x = torch.from_numpy(make.noise(batch * int(np.prod(shape)), 7777)).float().reshape(batch, *shape)
    y = torch.arange(batch) % 10
    if layout == "channels_last":
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    train = mode == "train"
    model.train(train)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)

    def step():
        if not train:
            with torch.inference_mode():
                return F.cross_entropy(model(x)[0], y)
        optimiser.zero_grad()
        loss = F.cross_entropy(model(x)[0], y)
        loss.backward()
        optimiser.step()
        return loss

    losses = [step().item() for _ in range(2 if net.startswith("resnet") else STEPS)]
    # Deep networks over few images are ill-conditioned: their first loss is compared, the others' twentieth.
    loss = losses[0] if net.startswith("resnet") else losses[-1]
    times, start, cpu = [], time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds or len(times) < 3:
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    per_cpu = batch * len(times) / (time.process_time() - cpu)
    times.sort()
    print(json.dumps({"per_cpu": per_cpu, "best": batch / times[0], "median": batch / times[len(times) // 2], "loss": loss}))


def together(commands, env=None):
    """Runs the commands at the same time, each on its own core when there are several; sums their speeds."""
    started = []
    for i, command in enumerate(commands):
        pin = ["taskset", "-c", str(i)] if len(commands) > 1 else []
        started.append(subprocess.Popen(pin + command, stdout=subprocess.PIPE, env={**os.environ, **(env or {})}))
    results = [json.loads(p.communicate()[0].splitlines()[-1]) for p in started]
    return {
        "per_cpu": statistics.mean(r["per_cpu"] for r in results),
        "best": sum(r["best"] for r in results),
        "median": sum(r["median"] for r in results),
        "loss": results[0]["loss"],
        "flop": results[0].get("flop"),
        "peak": results[0].get("peak"),
        "isa": results[0].get("isa"),
    }


def compare(binary, row, rounds, seconds, cores):
    net, mode, batch = ROWS[row]
    ours = lambda t: [binary, net, mode, str(batch), str(t), str(seconds)]
    theirs = lambda t, l: [sys.executable, __file__, "--torch", net.split("+")[0], mode, str(batch), str(t), str(seconds), l]
    ways = {
        f"ours, {cores} processes": lambda: together([ours(1)] * cores),
        f"ours, {cores} threads": lambda: together([ours(cores)]),
        "torch default": lambda: together([theirs(cores, "contiguous")]),
        f"torch tuned, {cores} threads": lambda: together([theirs(cores, "channels_last")], TUNED),
        f"torch tuned, {cores} processes": lambda: together([theirs(1, "channels_last")] * cores, TUNED),
    }
    seen = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            seen[name].append(way())
    losses = [r["loss"] for rs in seen.values() for r in rs]
    if max(losses) - min(losses) > 1e-2 * max(abs(v) for v in losses):
        sys.exit(f"{row}: the two sides computed different losses: {sorted(set(losses))}")
    print(f"\n{row}: {mode}, batch {batch}, losses agree within {max(losses) - min(losses):.1e}")
    median = {n: statistics.median(r["median"] for r in rs) for n, rs in seen.items()}
    best = {n: max(r["best"] for r in rs) for n, rs in seen.items()}
    for name in ways:
        print(f"  {name:28} median {median[name]:9.1f}  best {best[name]:9.1f} images/s")
    for kind, values in (("medians", median), ("bests", best)):
        us = max(v for n, v in values.items() if n.startswith("ours"))
        tuned = max(v for n, v in values.items() if n.startswith("torch"))
        print(f"  ratio of {kind}: {us / tuned:.2f} × best-tuned, {us / values['torch default']:.2f} × default")
    cpu = [max(statistics.median(r["per_cpu"] for r in rs) for n, rs in seen.items() if n.startswith(side) and n.endswith("processes")) for side in ("ours", "torch")]
    print(f"  images per second on a core (CPU time, one thread): {cpu[0]:.0f} and {cpu[1]:.0f}, ratio {cpu[0] / cpu[1]:.2f}")
    first = seen[next(iter(ways))]
    peak, flop = max(r["peak"] for r in first), first[0]["flop"]
    us = max(v for n, v in best.items() if n.startswith("ours"))
    share = 100 * us * flop / 1e9 / (peak * cores)
    print(f"  {first[0]['isa']}: {us * flop / 1e9:.0f} GFLOP/s, {share:.0f} % of {cores} × {peak:.0f} measured here")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--torch"]:
        net, mode, batch, threads, seconds, layout = sys.argv[2:]
        torch_side(net, mode, int(batch), int(threads), float(seconds), layout)
    else:
        parser = argparse.ArgumentParser()
        parser.add_argument("binary")
        parser.add_argument("--rows", default="narrow,wide,wide-winograd,cnn,narrow-eval,wide-eval")
        parser.add_argument("--rounds", type=int, default=3)
        parser.add_argument("--seconds", type=float, default=2.0)
        parser.add_argument("--cores", type=int, default=min(2, os.cpu_count()))
        a = parser.parse_args()
        for row in a.rows.split(","):
            compare(a.binary, row, a.rounds, a.seconds, a.cores)
