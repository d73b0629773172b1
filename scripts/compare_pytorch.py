"""Our runs beside PyTorch's (fedavg_pytorch.py, creff_pytorch.py), seed by seed: a table, and the accuracy curves.

    python scripts/compare_pytorch.py --ours RUN_DIR… --torch FILE.jsonl… [--svg data/fedavg-curves.svg]

Accuracy in percent, mean ± standard deviation over the seeds; of ours that of the deployed model after each round, as
`finetune` records it. "Last ten" is the mean of the last ten rounds that both sides have. Differences are ours −
PyTorch's: of the two means per round, and paired by the order of the arguments, with Student's 95 % interval.
--torch-figure fedavg_accuracy takes the plain average out of creff_pytorch.py's files. --svg needs matplotlib.
"""

import argparse
import json
import os
import statistics


def ours(folder):
    with open(os.path.join(folder, "metrics.jsonl")) as f:
        records = [json.loads(line) for line in f]
    return {r["round"]: 100 * r["accuracy"] for r in records if r["stage"] == "finetune" and r["split"] == "test"}


def theirs(file, figure):
    with open(file) as f:
        return {r["round"]: 100 * r[figure] for r in map(json.loads, f)}


def told(values):
    values = list(values)
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def student(freedom):
    """The 97.5 % quantile of Student's t."""
    table = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
    if freedom <= len(table):
        return table[freedom - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    # Abramowitz and Stegun 26.7.5, right to three decimals from here on.
    terms = (1, z), (4, z**3 + z), (96, 5 * z**5 + 16 * z**3 + 3 * z), (384, 3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z)
    return sum(term / (divisor * freedom**power) for power, (divisor, term) in enumerate(terms))


def interval(differences):
    if len(differences) < 2:
        return "no interval from one seed"
    mean = statistics.mean(differences)
    half = student(len(differences) - 1) * statistics.stdev(differences) / len(differences) ** 0.5
    return f"95 % interval {mean - half:.2f} to {mean + half:.2f}"


def draw(path, rounds, sides):
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "fedavg"})
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.4))
    for (name, runs), colour in zip(sides.items(), ("tab:blue", "tab:orange")):
        for run in runs:
            axes.plot(rounds, [run[r] for r in rounds], color=colour, alpha=0.3, linewidth=0.8)
        axes.plot(rounds, [statistics.mean(run[r] for run in runs) for r in rounds], color=colour, label=name)
    axes.set_xlabel("round")
    axes.set_ylabel("test accuracy, %")
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    darken(path)


# What a dark page shows instead of the light page's colours: paper, ink, and the two sides'.
DARK = {"#ffffff": "#0d1117", "#000000": "#e6edf3", "#1f77b4": "#58a6ff", "#ff7f0e": "#f0883e"}


def darken(path):
    """Adds the reader's dark mode to an SVG of matplotlib's, whose colours stand in style attributes, black text in none."""
    with open(path) as f:
        text = f.read()
    rules = "".join(
        f'[style*="{kind}: {light}"]{{{kind}:{dark}!important}}' for light, dark in DARK.items() for kind in ("fill", "stroke")
    )
    style = f"<style>@media screen and (prefers-color-scheme:dark){{text{{fill:#e6edf3}}{rules}}}</style>"
    start = text.index(">", text.index("<svg")) + 1
    with open(path, "w") as f:
        f.write(text[:start] + "\n " + style + text[start:])


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--ours", nargs="+", required=True)
    p.add_argument("--torch", nargs="+", required=True)
    p.add_argument("--torch-figure", default="accuracy")
    p.add_argument("--svg")
    a = p.parse_args()
    if len(a.ours) != len(a.torch):
        raise SystemExit(f"{len(a.ours)} runs of ours, {len(a.torch)} of PyTorch: as many on both sides")
    sides = {"fedllava": [ours(f) for f in a.ours], "PyTorch": [theirs(f, a.torch_figure) for f in a.torch]}
    both = [run for runs in sides.values() for run in runs]
    rounds = sorted(set.intersection(*(set(run) for run in both)))
    last = {name: [statistics.mean(run[r] for r in rounds[-10:]) for run in runs] for name, runs in sides.items()}
    print(f"| accuracy, % ({len(a.ours)} seeds) | fedllava | PyTorch | ours − PyTorch, paired |\n|---|---:|---:|---:|")
    for r in [r for r in rounds if r == 1 or r % 5 == 0 or r == rounds[-1]]:
        us, them = ([run[r] for run in runs] for runs in sides.values())
        print(f"| round {r} | {told(us)} | {told(them)} | {told(x - y for x, y in zip(us, them))} |")
    us, them = last.values()
    paired = [x - y for x, y in zip(us, them)]
    print(f"| last ten of {rounds[-1]} | {told(us)} | {told(them)} | {told(paired)} |")
    print(f"\nlast ten, ours − PyTorch, paired: {statistics.mean(paired):.2f}, {interval(paired)}")
    curves = [[statistics.mean(run[r] for run in runs) for r in rounds] for runs in sides.values()]
    gaps = [x - y for x, y in zip(*curves)]
    most = f"between {min(gaps):.2f} and {max(gaps):.2f}"
    print(f"over all {len(rounds)} rounds the means differ by {told(gaps)}, {most}")
    if a.svg:
        draw(a.svg, rounds, sides)


if __name__ == "__main__":
    main()
