"""The server's weighted mean of K models beside numpy's of the same arrays, one thread a side, interleaved.

    binary=$(cargo bench --bench aggregate --no-run 2>&1 | sed -n 's/.*Executable.*(\\(.*\\))$/\\1/p')
    python scripts/bench_aggregate.py $binary [--rounds 7] [--seconds 0.4]

Ours sums in float64 (leaves of 16, one order for any number of threads). Three numpy sides, all on the K separate
arrays that a server receives but for the last: float32 in place (`acc += w * x` through one buffer), float64 in place,
and `w @ stack` in float32 on one matrix that already lies stacked, which no server has for nothing.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
import numpy as np

SIZES = [(8, 77_000), (8, 1_230_000), (50, 1_626_000), (1000, 1_738), (100, 77_000)]


def in_place(models, weights, dtype):
    def run():
        acc, tmp = np.zeros(models[0].shape, dtype), np.empty(models[0].shape, dtype)
        for w, x in zip(weights, models):
            np.multiply(x, w, out=tmp, dtype=dtype)
            np.add(acc, tmp, out=acc)
        acc /= dtype(weights.sum())
        return acc

    return run


def timed(run, seconds):
    times, start = [], time.perf_counter()
    while time.perf_counter() - start < seconds or len(times) < 3:
        begin = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - begin)
    return statistics.median(times), result[:8]


def compare(binary, count, size, rounds, seconds, folder):
    stack = np.random.default_rng(1).standard_normal((count, size), dtype=np.float32)
    models, weights = [row.copy() for row in stack], np.arange(1, count + 1, dtype=np.float64)
    file = os.path.join(folder, "models.f32")
    stack.tofile(file)
    single = weights.astype(np.float32)
    sides = {
        "float32": in_place(models, single, np.float32),
        "float64": in_place(models, weights, np.float64),
        "w @ stack": lambda: (single @ stack) / single.sum(),
    }
    exact = (weights @ stack[:, :8].astype(np.float64)) / weights.sum()
    ratios, ours_ms = {name: [] for name in sides}, []
    for _ in range(rounds):
        command = [binary, file, str(count), str(size), str(seconds)]
        ours = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        if not np.allclose(ours["result"], exact[: len(ours["result"])], rtol=1e-12, atol=1e-15):
            raise SystemExit(f"{count} x {size}: the means differ: {ours['result']} and {exact}")
        ours_ms.append(1e3 * ours["median"])
        for name, run in sides.items():
            median, result = timed(run, seconds)
            if not np.allclose(result, exact, rtol=1e-2, atol=1e-4):
                raise SystemExit(f"{count} x {size}: {name} is wrong: {result} and {exact}")
            ratios[name].append(median / ours["median"])
    told = ", ".join(f"{n} {statistics.median(r):.2f} ({min(r):.2f} to {max(r):.2f})" for n, r in ratios.items())
    print(f"{count:5} models of {size:9,}: ours {statistics.median(ours_ms):8.3f} ms; numpy's time over ours: {told}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.4)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for count, size in SIZES:
            compare(a.binary, count, size, a.rounds, a.seconds, folder)
