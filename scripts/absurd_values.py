#!/usr/bin/env python3
"""Runs a tiny config with absurd values of every key of `config list`, with 6 GB and 20 seconds of a processor each.

    scripts/absurd_values.py BINARY [PREFIX…]     # all keys, or those that begin with one of these; minutes

In the checkout's folder. Prints what ends otherwise than with 0, 2, 3 or 4 and how often each code came; ends with 1 where
there was such a case. Python's standard library alone (Linux).
"""

import collections
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

VALUES = ["0", "-1", "1", "1e308", "-1e308", "1e-308", "nan", "inf", "2147483648", "9223372036854775807"]
VALUES += ["9223372036854775808", '""', f'"{"x" * 5000}"', "[]"]

CONFIG = """
data = {{ kind = "world", pool_images = 8, train_per_class = 8, test_per_class = 2 }}
longtail.imbalance = 2
partition = {{ kind = "dirichlet", clients = 3, min_size = 2 }}
server_set.per_class = 2
validation.per_class = 1
model = {{ kind = "resnet8", width = 2 }}
clip = {{ kind = "model", path = "data/demo-clip" }}
pool.kind = "world"
pretrain = {{ enabled = {stages}, epochs = 1, batch_size = 4 }}
federated = {{ rounds = 2, cohort = 2, local_epochs = 1, batch_size = 8, checkpoint_every = 1 }}
align = {{ beta = {beta}, steps = 1, batch_size = 4 }}
evaluate.shots = "rank:3/4/3"
run.threads = 1
"""


def limits():
    resource.setrlimit(resource.RLIMIT_AS, (6_000_000 * 1024,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (20, 25))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def owner(key, kind, types):
    """What makes `key` one of `kind`'s: the nearest section above it that has such a kind."""
    section = key
    while kind and "." in section:
        section = section.rsplit(".", 1)[0]
        if kind in types.get(f"{section}.kind", "").split(" | "):
            return [f"{section}.kind={kind}"]
    return []


def main():
    binary, prefixes = str(Path(sys.argv[1]).resolve()), tuple(sys.argv[2:]) or ("",)
    listed = subprocess.run([binary, "config", "list", "--json"], capture_output=True, text=True, check=True)
    keys = json.loads(listed.stdout)["keys"]
    types, codes, bad = {k["key"]: k["type"] for k in keys}, collections.Counter(), 0
    for key in (k for k in keys if k["key"].startswith(prefixes)):
        kinds = [kind for default in key["defaults"] for kind in default["kinds"] or [""]] or [""]
        for kind, value in ((kind, value) for kind in dict.fromkeys([kinds[0], kinds[-1]]) for value in VALUES):
            whole = key["key"].split(".")[0] in ("pretrain", "clip", "pool", "align", "teacher")
            with tempfile.TemporaryDirectory() as folder:
                config = Path(folder, "c.toml")
                config.write_text(CONFIG.format(stages=str(whole).lower(), beta=0.5 if whole else 0.0))
                items = [f"run.dir={folder}/r", f"run.cache={folder}/c", *owner(key["key"], kind, types)]
                command = [binary, "-q", "run", config, *(x for i in items for x in ("--set", i))]
                command += ["--set", f"{key['key']}={value}"]
                # A key of where things go could lead elsewhere.
                if key["key"] in ("run.dir", "run.cache"):
                    continue
                run = subprocess.run(command, capture_output=True, text=True, errors="replace", preexec_fn=limits)
            codes[run.returncode] += 1
            if run.returncode not in (0, 2, 3, 4):
                bad += 1
                print(f"{key['key']} = {value[:40]} ({kind}): exit {run.returncode}: {run.stderr[-300:]}", flush=True)
    print(dict(codes))
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
