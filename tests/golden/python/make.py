"""Writes rng.json: what Python's `random` draws.

Run: python tests/golden/python/make.py   (made with Python 3.11; the algorithms have not changed since 3.2)
Tolerance: none. Floats are compared to the bit, integers exactly.
"""

import json
import random
from pathlib import Path


def case(seed):
    rng = random.Random(seed)
    out = {"seed": seed, "random": [rng.random() for _ in range(20)]}
    out["randrange"] = [(n, rng.randrange(n)) for n in [1, 2, 3, 10, 100, 1 << 20, (1 << 32) - 1, 1 << 32, 10**12]]
    items = list(range(40))
    rng.shuffle(items)
    out["shuffle_40"] = items
    pairs = [(10, 2), (10, 10), (21, 5), (22, 5), (85, 6), (86, 6), (1000, 30), (5000, 12)]
    out["samples"] = [(n, k, rng.sample(range(n), k)) for n, k in pairs]
    return out


Path(__file__).with_name("rng.json").write_text(json.dumps([case(s) for s in [0, 7, 41, 42, 2**40 + 5]]) + "\n")
