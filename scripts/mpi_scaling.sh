#!/usr/bin/env bash
# Weak scaling over MPI ranks: 16 clients and one thread a rank, so a round does as much on each however many there are.
#
#   scripts/mpi_scaling.sh BINARY [RANKS ...]      # a binary with the feature mpi; ranks 1 2 by default
#
# Prints for two networks and each number of ranks the medians over the rounds (the first left out) of the seconds a
# round, of the same for as many processes apart, at once and without messages (what sharing the machine costs), of the
# milliseconds that rank 0 spent on messages and on waiting for the others, and its bytes of messages. The runs take
# turns, TURNS times (3); nothing is left behind. MPIRUN names the launcher with its options.
set -euo pipefail
binary=$(realpath "$1")
shift
ranks=("${@:-1 2}")
# shellcheck disable=SC2206 # words are meant
ranks=(${ranks[*]})
launcher=${MPIRUN:-mpirun --allow-run-as-root --oversubscribe --bind-to none}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
most=$(printf '%s\n' "${ranks[@]}" | sort -n | tail -1)
cat > scaling.toml <<TOML
[data]
kind = "world"
train_per_class = $((80 * most))
test_per_class = 10
[longtail]
imbalance = 1
[partition]
kind = "iid"
clients = $((16 * most))
[pretrain]
enabled = false
[align]
enabled = false
[federated]
rounds = 6
cohort = 16
local_epochs = 1
batch_size = 20
eval_every = 100
[evaluate]
overlaps = false
[run]
share = false
threads = 1
TOML
grep -m1 'model name' /proc/cpuinfo | sed 's/.*: //'
# one MODEL RANKS HOW DIRECTORY COMMAND...: a run, and what it is of
one() {
    local model=$1 n=$2 how=$3 run=$4
    shift 4
    "$@" --quiet run scaling.toml --set "model=$model" --set "run.dir=$run" >/dev/null
    printf '{"model": "%s", "ranks": %d, "how": "%s"}\n' "$(sed 's/.*kind="\([a-z0-9]*\)".*/\1/' <<<"$model")" "$n" "$how" > "$run/of.json"
}
for turn in $(seq "${TURNS:-3}"); do
    for model in '{kind="resnet8",width=16}' '{kind="mlp",hidden=[512,256]}'; do
        for n in "${ranks[@]}"; do
            at=turn-$turn-$n-${#model}
            sed -i "s/^cohort = .*/cohort = $((16 * n))/" scaling.toml
            # shellcheck disable=SC2086 # the launcher's options
            one "$model" "$n" ranks "$at" $launcher -n "$n" "$binary"
            sed -i "s/^cohort = .*/cohort = 16/" scaling.toml
            for k in $(seq "$n"); do one "$model" "$n" alone "$at-alone-$k" "$binary" & done
            wait
        done
    done
done
python3 - <<'PYTHON'
import glob, json, statistics as s
rows = {}
for path in glob.glob("turn-*/of.json"):
    of = json.load(open(path))
    times = [json.loads(l) for l in open(path.replace("of.json", "times.jsonl"))]
    rows.setdefault((of["model"], of["ranks"], of["how"]), []).extend(t for t in times if t["stage"] == "finetune" and t["round"] > 1)
print("| network | ranks | s a round | apart | messages ms | waiting ms | MiB |")
print("|---|---:|---:|---:|---:|---:|---:|")
for model, ranks in sorted({key[:2] for key in rows}):
    m = lambda key, how="ranks": s.median(t.get(key, 0.0) for t in rows[model, ranks, how])
    print(f"| {model} | {ranks} | {m('seconds'):.3f} | {m('seconds', 'alone'):.3f} | {1e3 * m('ranks_moving'):.2f} | {1e3 * m('ranks_waiting'):.1f} | {m('ranks_bytes') / 2**20:.2f} |")
PYTHON
