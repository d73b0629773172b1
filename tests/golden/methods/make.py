"""Golden values of the federated methods: a toy federation of six clients over four rounds, in PyTorch.

    python make.py [method ...]      writes toy.json and <method>.safetensors beside this file

Made with PyTorch 2.15.0 in float64 on a CPU (OMP_NUM_THREADS=1), written from the methods' equations alone; stored in
float32. toy.py says what the federation is; the docstring of every method's function gives its equations and each
choice that they leave open. Tensors: `model/<tensor>` the global model after the last round, `deployed/<tensor>`
what is judged where it differs (tensors equal to the model's left out), `state/<name>` the server's state after the
last round, `kept/<client>/<name>` what a client keeps, `trace/<round>/<name>` what happened on the way, to find a
first difference.

A rectifier's input within rounding of zero passes the gradient or not, so some images make a trajectory that no two
orders of addition share. So the salt of the clients' images is a method's own: the first of 7777, 7877, ... with
which eight starts, shaken by normal draws of 3e-6 of every weight, end within 3e-4 of the tensor's largest entry
(FedDF: draws of 1e-6, since Adam also magnifies every gradient that is nearly zero; FEDIC's and FedDF's are the
touchiest). toy.json gives by method `images`, that salt; `shaken`, how far those starts led; `float32`, how far the
same code in float32 did (over `model`, `deployed`, `state`, `kept`). Tolerance for a float32 implementation without
Winograd: 1e-4 or ten times `float32`, whichever is larger, of the tensor's largest entry. Kept states as large as
the model are stored of clients 3 and 4 alone.
"""

import json
import os
import sys

import torch
from safetensors.torch import save_file

import client_side as client
import distil
import federated_features as features
import heads
import server_side as server
import toy

JUMP = 3e-4
SHAKE = {"feddf-frozen": 1e-6, "feddf-batch": 1e-6}  # of the others 3e-6
KEPT = (3, 4)  # clients whose large kept states are stored

METHODS = {
    "creff": features.creff,
    "clip2fl": features.clip2fl,
    "fedloge": heads.fedloge,
    "fedyoyo": heads.fedyoyo,
    "fedyoyo-flipped": heads.fedyoyo_flipped,
    "fedic": distil.fedic,
    "fedavg": client.fedavg,
    "fedprox": client.fedprox,
    "scaffold": server.scaffold,
    "fedavgm": server.fedavgm,
    "fedavgm-ema": server.fedavgm_ema,
    "fedadam": server.fedadam,
    "fedyogi": server.fedyogi,
    "fedadagrad": server.fedadagrad,
    "fednova": server.fednova,
    "feddyn": server.feddyn,
    "moon": client.moon,
    "feddf-frozen": distil.feddf_frozen,
    "feddf-batch": distil.feddf_batch,
    "fedbe": distil.fedbe,
    "ccvr": distil.ccvr,
    "focal": client.focal,
    "ratio-loss": client.ratio_loss,
    "ratio-loss-current": client.ratio_loss_current,
    "fedir": client.fedir,
    "balancefl": client.balancefl,
    "balancefl-mean": client.balancefl_mean,
    "logit-adjustment-local": client.logit_adjustment_local,
    "logit-adjustment-global": client.logit_adjustment_global,
    "fedlc": client.fedlc,
}


def flat(result):
    out = {}
    for part, named in result.items():
        for name, t in named.items():
            if part == "kept" and len(t) > 2 and name not in KEPT:
                continue
            inner = {f"{name}/{n}": v for n, v in t.items()} if isinstance(t, dict) else {name: t}
            out |= {f"{part}/{n}": v.detach() for n, v in inner.items()}
    same = [n for n in out if n.startswith("deployed") and equal(out, n)]
    return {n: t for n, t in out.items() if n not in same}


def equal(out, name):
    of_model = out.get("model/" + name.split("/", 1)[1])
    return of_model is not None and torch.equal(of_model, out[name])


def run(method, salt, dtype=torch.float64, start=toy.start):
    before = toy.DTYPE, toy.start, toy.SALT["clients"]
    toy.DTYPE, toy.start, toy.SALT["clients"] = dtype, start, salt
    result = flat(METHODS[method]())
    toy.DTYPE, toy.start, toy.SALT["clients"] = before
    return result


def shaken(seed, by):
    """The start weights, each off by a normal draw times `by` of itself."""
    draw = torch.Generator().manual_seed(seed)
    normal = lambda t: torch.randn(t.shape, generator=draw, dtype=t.dtype)  # noqa: E731
    start = toy.start
    return lambda: {n: t * (1 + by * normal(t)) for n, t in start().items()}


def off(got, want):
    """The largest distance of a tensor of two runs, over the tensor's largest entry, and which tensor it is."""
    names = [n for n in want if n in got and not n.startswith(("trace", "eps"))]
    top = lambda t: float(t.abs().max())  # noqa: E731
    return max((top(got[n].to(want[n]) - want[n]) / max(top(want[n]), 1e-30), n) for n in names)


def steady(method, salt, want):
    """How far shaken starts lead, or None as soon as one leads too far."""
    worst = 0.0
    for seed in range(8):
        worst = max(worst, off(run(method, salt, start=shaken(seed, SHAKE.get(method, 3e-6))), want)[0])
        if worst > JUMP:
            return None
    return worst


def make(method, salts):
    for salt in salts:
        want = run(method, salt)
        assert all(t.isfinite().all() for t in want.values()), method
        moved = steady(method, salt, want)
        if moved is not None:
            break
    else:
        raise SystemExit(f"{method}: every salt leads to a jump")
    rounding, where = off(run(method, salt, torch.float32), want)
    tensors = {n: t.float().contiguous().clone() for n, t in want.items()}
    save_file(tensors, os.path.join(toy.HERE, f"{method}.safetensors"), metadata={"images": str(salt)})
    print(f"{method}: images {salt}, float32 off by {rounding:.1e} ({where}), shaken by {moved:.1e}", flush=True)
    return {"images": salt, "float32": float(f"{rounding:.1e}"), "shaken": float(f"{moved:.1e}")}


if __name__ == "__main__":
    torch.set_num_threads(1)
    path = os.path.join(toy.HERE, "toy.json")
    known = json.load(open(path))["methods"] if os.path.exists(path) else {}
    for method in sys.argv[1:] or METHODS:
        first = [known[method]["images"]] if method in known else []
        known[method] = make(method, first + [7777 + 100 * i for i in range(60)])
    about = {
        "torch": torch.__version__.split("+")[0],
        "clients": toy.CLIENTS,
        "labels": toy.LABELS,
        "cohorts": toy.COHORTS,
        "classes": toy.CLASSES,
        "shape": [3, 8, 8],
        "model": {"kind": "resnet8", "width": 4},
        "learning_rate": toy.RATE,
        "local_epochs": toy.STEPS,
        "server_labels": [i % toy.CLASSES for i in range(8)],
        "pool": 12,
        "salts": {n: s for n, s in toy.SALT.items() if n != "clients"},
    }
    lines = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in about.items()]
    rows = ",\n".join(f"    {json.dumps(m)}: {json.dumps(known[m])}" for m in METHODS if m in known)
    lines.append(f'  "methods": {{\n{rows}\n  }}')
    open(path, "w").write("{\n" + ",\n".join(lines) + "\n}\n")
