"""Writes rng.json and creff.json: what numpy's legacy generator draws, and a split drawn with it.

Run: python tests/golden/numpy/make.py   (made with Python 3.11, numpy 2.4.6)
Tolerance: none. Floats are compared to the bit, integers exactly.

The split follows the published description of the CReFF/CLIP2FL data code:
long tail n_i = int(N/C * factor**(i/(C-1))), per class a shuffle with the global generator and the first n_i kept;
then a Dirichlet partition with its own generator in slices of ten workers, whose flat concatenation is cut into
equal chunks: the clients.
"""

import hashlib
import json
import math
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent


def rng_vectors():
    out = {}
    for name in ["random_sample", "standard_normal", "standard_exponential"]:
        rng = np.random.RandomState(7)
        out[name] = [float(getattr(rng, name)()) for _ in range(60)]
    rng = np.random.RandomState(7)
    items = list(range(50))
    rng.shuffle(items)
    out["shuffle_50"] = items
    out["then_permutation_33"] = rng.permutation(33).tolist()
    out["then_choice_1000_12"] = rng.choice(1000, 12, replace=False).tolist()
    shapes = ["0.1", "0.5", "1.0", "2.5"]
    out["standard_gamma"], out["dirichlet_10"] = {}, {}
    for shape in shapes:
        rng = np.random.RandomState(11)
        out["standard_gamma"][shape] = [float(rng.standard_gamma(float(shape))) for _ in range(40)]
        rng = np.random.RandomState(13)
        draws = [rng.dirichlet([float(shape)] * 10) for _ in range(3)]
        out["dirichlet_10"][shape] = np.concatenate(draws).tolist()
    values = np.random.RandomState(3).random_sample(40) ** 5
    out["sum_values"] = values.tolist()
    out["sums"] = [float(values[:n].sum()) for n in range(41)]
    return out


def long_tail(labels, classes, factor, seed):
    np.random.seed(seed)
    kept = []
    for c in range(classes):
        indices = [i for i, y in enumerate(labels) if y == c]
        np.random.shuffle(indices)
        n = int(len(labels) / classes * factor ** (c / (classes - 1)))
        kept.append(indices[:n])
    return kept


def worker_lists(rows, size, workers, classes, alpha, rng):
    while True:
        lists = [[] for _ in range(workers)]
        for c in range(classes):
            mine = [i for i, y in rows if y == c]
            p = rng.dirichlet([alpha] * workers)
            p = np.array([q * (len(held) < size / workers) for q, held in zip(p, lists)])
            with np.errstate(invalid="ignore"):
                p = p / p.sum()
                cuts = (np.cumsum(p) * len(mine)).astype(int)[:-1]
            pieces = np.split(np.array(mine, dtype=int), cuts)
            lists = [held + piece.tolist() for held, piece in zip(lists, pieces)]
        if min(len(held) for held in lists) >= int(0.50 * size / workers):
            return lists


def partition(kept, clients, alpha, seed, auxiliary=10):
    rng = np.random.RandomState(seed)
    rows = [(i, c) for c, indices in enumerate(kept) for i in indices]
    rng.shuffle(rows)
    total, slices = len(rows), math.ceil(clients / auxiliary)
    flat, start, left = [], 0, clients
    for s in range(slices):
        end = total if s == slices - 1 else start + int(auxiliary / clients * total)
        part, workers = rows[start:end], min(auxiliary, left)
        start, left = end, left - auxiliary
        for held in worker_lists(part, len(part), workers, len(kept), alpha, rng):
            flat += held
    base, more = divmod(total, clients)
    out, at = [], 0
    for k in range(clients):
        size = base + (k < more)
        out.append(flat[at : at + size])
        at += size
    return out


def counts(split, labels, classes):
    return [np.bincount([labels[i] for i in held], minlength=classes).tolist() for held in split]


def sha1_12(matrix):
    return hashlib.sha1(json.dumps(matrix).encode()).hexdigest()[:12]


def main():
    (HERE / "rng.json").write_text(json.dumps(rng_vectors()))
    cases = []
    for classes, each, factor, clients, alpha, seed in [
        (10, 200, 0.01, 20, 0.5, 7),
        (10, 100, 0.1, 20, 0.5, 7),
        (7, 150, 0.05, 23, 0.3, 3),
        (5, 120, 0.1, 10, 1.0, 42),
    ]:
        # A synthetic label list whose classes are interleaved irregularly.
        total = classes * each
        labels = [(i * 7919 % total) // each for i in range(total)]
        assert all(labels.count(c) == each for c in range(classes))
        split = partition(long_tail(labels, classes, factor, seed), clients, alpha, seed)
        matrix = counts(split, labels, classes)
        case = dict(classes=classes, each=each, factor=factor, clients=clients, alpha=alpha, seed=seed)
        cases.append(case | dict(split=split, counts_sha1=sha1_12(matrix)))
    (HERE / "creff.json").write_text(json.dumps(cases))
    # The published settings: printed for comparison with the constants in src/data/creff.rs.
    for classes in [10, 100]:
        labels = [i % classes for i in range(50000)]
        for factor in [0.01, 0.02, 0.1]:
            split = partition(long_tail(labels, classes, factor, 7), 20, 0.5, 7)
            print(classes, factor, sha1_12(counts(split, labels, classes)))


main()
