#!/usr/bin/env python3
"""Whether a run's memory stays where it is over thousands of rounds.

    scripts/memory_rounds.py BINARY [ROUNDS [CASE]]     # 4000, all; minutes

For FedAvg, SCAFFOLD and FedAvg with alignment every round: resident memory (Linux) every 20 ms, the medians of eighths of the
run, and the last over the second (what is allocated once is there by then). Ends with 1 where that is more than 1 %.
Python's standard library alone.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONFIG = """
[data]
kind = "world"
pool_images = 8
train_per_class = 16
test_per_class = 2
[longtail]
imbalance = 2
[partition]
kind = "dirichlet"
clients = 10
min_size = 2
[server_set]
per_class = 2
[model]
kind = "resnet8"
width = 4
[pretrain]
enabled = false
[federated]
rounds = {rounds}
cohort = 2
local_epochs = 1
batch_size = 8
eval_every = 10
checkpoint_every = 50
optimiser = {{ kind = "sgd", lr = 0.01 }}
[align]
beta = 0.0
steps = 1
batch_size = 4
[evaluate]
shots = "rank:3/4/3"
overlaps = false
"""

CASES = {
    "FedAvg": ["align.enabled=false"],
    "SCAFFOLD": ["align.enabled=false", "algorithm.kind=scaffold"],
    "FedAvg, alignment every round": ["align.when=every-round"],
}


def resident(pid):
    """MiB that a process holds; none once it is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return None


def eighths(binary, folder, items):
    command = [binary, "-q", "run", "c.toml", "--set", "run.dir=r", *(x for i in items for x in ("--set", i))]
    run = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    samples = []
    while run.poll() is None:
        if (now := resident(run.pid)) is not None:
            samples.append(now)
        time.sleep(0.02)
    if run.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit {run.returncode}")
    n = len(samples)
    return [statistics.median(samples[i * n // 8 : (i + 1) * n // 8]) for i in range(8)]


def main():
    binary, rounds = str(Path(sys.argv[1]).resolve()), int(sys.argv[2]) if len(sys.argv) > 2 else 4000
    chosen, worst = {k: v for k, v in CASES.items() if k in sys.argv[3:]} or CASES, 0.0
    for name, items in chosen.items():
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "c.toml").write_text(CONFIG.format(rounds=rounds))
            began = time.time()
            found = eighths(binary, folder, items)
        rise = found[7] / found[1] - 1
        worst = max(worst, rise)
        medians = " ".join(f"{m:.1f}" for m in found)
        print(f"{name}: {rounds} rounds, {time.time() - began:.0f} s, MiB: {medians}: {100 * rise:+.2f} %", flush=True)
    sys.exit(1 if worst > 0.01 else 0)


if __name__ == "__main__":
    main()
