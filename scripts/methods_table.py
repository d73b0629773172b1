"""The methods of one experiment as a Markdown table: accuracies in percent, seconds and burden of a round.

    python scripts/methods_table.py runs/methods > data/results/methods-cifar10-lt.md

Reads what runs wrote: eval.json, metrics.jsonl, times.jsonl. Needs Python alone. "Last ten" is the mean over the last ten
rounds; many, medium and few are the last round's. Seconds are the median over rounds, evaluation left out.
"""

import json
import os
import statistics
import sys


def lines(path):
    with open(path) as f:
        return [json.loads(line) for line in f if line.strip()]


def percent(value):
    return "–" if value is None else f"{100 * value:.1f}"


def row(folder, name, base):
    with open(os.path.join(folder, "eval.json")) as f:
        evaluation = json.load(f)
    stage, facts = evaluation["stages"]["finetune"], evaluation["facts"]
    seconds = [r["seconds"] for r in lines(os.path.join(folder, "times.jsonl")) if r["stage"] == "finetune"]
    burden = facts["burden"]
    ratio = lambda key: "–" if not base[key] else f"{burden[key] / base[key]:.2f}"
    personal = stage.get("personal") or {}
    last = stage["last10"] if facts["mode"] != "local" else personal.get("mean")
    figures = [percent(last)] + [percent(stage[k]) for k in ("overall", "many", "medium", "few", "worst_class")]
    if facts["mode"] == "local":
        figures[1:] = ["–"] * 5
    extras = [facts["teacher"]] if facts.get("teacher") else []
    if personal.get("mean") is not None:
        own = stage["personal_own"]["mean"]
        extras.append(f"own models: {percent(personal['mean'])} on all classes, {percent(own)} by the client's shares")
    if facts["oracle"]:
        extras.append("oracle teacher")
    cells = [name, *figures, f"{statistics.median(seconds):.1f}", ratio("bytes_down"), ratio("bytes_up")]
    return cells + [ratio("multiply_adds"), "; ".join(extras)]


def run_of(root, name):
    """The run of an arm: its lowest seed, or the arm's folder itself where an earlier version wrote it."""
    folder = os.path.join(root, name)
    seeds = sorted(d for d in os.listdir(folder) if d.startswith("seed-")) if os.path.isdir(folder) else []
    return os.path.join(folder, seeds[0]) if seeds else folder


def main():
    root = sys.argv[1]
    with open(os.path.join(root, "experiment.json")) as f:
        names = json.load(f)["arms"]
    done = [n for n in names if os.path.exists(os.path.join(run_of(root, n), "eval.json"))]
    with open(os.path.join(run_of(root, "fedavg"), "eval.json")) as f:
        base = json.load(f)["facts"]["burden"]
    header = "method, last ten, last, many, medium, few, worst class, s a round, down, up, multiply-adds, remarks"
    columns = header.split(", ")
    print("| " + " | ".join(columns) + " |")
    print("|---" + "|---:" * (len(columns) - 2) + "|---|")
    for name in done:
        print("| " + " | ".join(row(run_of(root, name), name, base)) + " |")
    missing = [n for n in names if n not in done]
    if missing:
        print("not finished:", ", ".join(missing), file=sys.stderr)


if __name__ == "__main__":
    main()
