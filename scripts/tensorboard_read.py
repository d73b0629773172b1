"""A run's TensorBoard file, read by TensorBoard's own reader, beside metrics.jsonl: every figure, round by round.

    fedllava run configs/demo.toml --set run.tensorboard=true
    python scripts/tensorboard_read.py RUN_DIR…

Needs tensorboard. Prints how many figures agree, of each run; ends with 1 where one is missing, differs by more than f32
rounds, or is in the event file alone.
"""

import json
import math
import os
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def records(folder):
    """{tag: [(round, value)]} of metrics.jsonl, figures that are not finite left out as they are there."""
    found = {}
    with open(os.path.join(folder, "metrics.jsonl")) as f:
        for record in map(json.loads, f):
            for name, value in record.items():
                if name != "round" and isinstance(value, (int, float)):
                    tag = f"{record['stage']}/{record['split']}/{name}"
                    found.setdefault(tag, []).append((record["round"], value))
    return found


def events(folder):
    """{tag: [(step, value)]} as TensorBoard reads them."""
    board = EventAccumulator(folder, size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


def main(folders):
    bad = 0
    for folder in folders:
        ours, theirs = records(folder), events(folder)
        same = 0
        for tag in sorted(ours.keys() | theirs.keys()):
            a, b = ours.get(tag, []), theirs.get(tag, [])
            close = [s == t and math.isclose(x, y, rel_tol=1e-6, abs_tol=1e-30) for (s, x), (t, y) in zip(a, b)]
            same += sum(close)
            if len(a) != len(b) or not all(close):
                bad += 1
                print(f"{folder}: {tag}: {a} beside {b}", file=sys.stderr)
        print(f"{folder}: {same} of {sum(map(len, ours.values()))} figures under {len(ours)} tags agree")
    return bad > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
