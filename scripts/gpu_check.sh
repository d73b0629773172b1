#!/usr/bin/env bash
# Whether a GPU computes what the CPU computes, and how fast, on a machine that has neither Rust nor a network:
#
#     scripts/gpu_check.sh --emulate [FOLDER]   here, without a GPU: every step below on the emulated card, candle on the CPU
#     scripts/gpu_check.sh --pack FILE.tar.xz   where Rust is: builds with CUDA (see cuda_toolkit.sh), packs programs and script
#     ./gpu_check.sh [FOLDER]                   on the GPU, in the unpacked package; FOLDER for what is said, default ./said
#
# Steps: kernels and whole local steps beside the CPU engine; a run of all three stages by the CPU engine and by the card, and
# once more by the card, for equal bytes; CLIP, LLaVA and SmolVLM by candle, forward and (LoRA) backward; times of CReFF's
# step for 1, 8 and 20 clients with the floor beside them; the kernels under compute-sanitizer where there is one. Needs
# python3, libcuda (the driver's), libcublas and libnvrtc of CUDA 13; those of Python's packages are found. GPU=1 takes the
# second GPU. Ends with a table, and with 1 where a step failed.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
say() { printf '%s\n' "$*" >&2; }

# The test program of `fedllava-core` as cargo built it.
built() {
    cargo test --quiet -p fedllava-core --lib --no-run --message-format=json "$@" |
        sed -n 's/.*"executable":"\([^"]*fedllava_core-[^"]*\)".*/\1/p' | tail -1
}

# `fedllava` as cargo built it.
binary() {
    cargo build --quiet --bin fedllava --message-format=json "$@" |
        sed -n 's/.*"executable":"\([^"]*\/fedllava\)".*/\1/p' | tail -1
}

case ${1:-} in
--emulate)
    cd "$here/.."
    program=$(built) && fedllava=$(binary) || exit 1
    models=$PWD/tests/golden/vlm
    said=${2:-$(mktemp -d)}
    engine=emulated device=cpu
    ;;
--pack)
    cd "$here/.."
    program=$(built --features cuda) && fedllava=$(binary --release --features cuda) || exit 1
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    mkdir "$folder/gpu_check"
    strip -o "$folder/gpu_check/kernels" "$program"
    strip -o "$folder/gpu_check/fedllava" "$fedllava"
    cp -r "$here/gpu_check.sh" tests/golden/vlm/smolvlm tests/golden/vlm/wide.png "$folder/gpu_check/"
    tar -C "$folder" -cJf "${2:?a file to pack into}" gpu_check
    say "$2: $(($(stat -c %s "$2") / 1048576)) MiB"
    exit 0
    ;;
*)
    program=$here/kernels fedllava=$here/fedllava models=$here
    said=${1:-$here/said}
    export FEDLLAVA_CARD=${GPU:-0}
    engine=cuda-strict device=cuda:$FEDLLAVA_CARD
    libraries=$(python3 -c 'import site, glob
for base in site.getsitepackages() + [site.getusersitepackages()]:
    for found in glob.glob(base + "/nvidia/*/lib"): print(found, end=":")' 2>/dev/null)
    export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:-}
    ;;
esac
[ -x "$program" ] && [ -x "$fedllava" ] || { say "no program $program or $fedllava"; exit 1; }
mkdir -p "$said"
said=$(cd "$said" && pwd)
# Configs and models are in the binary; runs lie beside what is said.
cd "$said" || exit 1

table=()
failed=0
# A step: its name, the seconds it may take, its command; what it says goes to a file, its last line into the table.
step() {
    local name=$1 most=$2 start=$SECONDS result=ok line
    shift 2
    export -f run rounds same asked candle
    timeout "$most" "$@" >"$said/$name.txt" 2>&1 || { result="failed ($?)"; failed=1; }
    line=$(grep -m1 '^test result' "$said/$name.txt" || tail -1 "$said/$name.txt")
    table+=("$(printf '%-10s %-13s %4d s   %s' "$name" "$result" $((SECONDS - start)) "$line")")
}

# A run of all three stages on a small world by an engine, into a folder. Its steps are small: rounding must not grow.
run() {
    "$fedllava" -q run configs/demo.toml --set run.dir="$1" --set run.cache="$1-cache" --set run.engine="$2" \
        --set run.device="$3" --set data.pool_images=64 --set data.train_per_class=30 --set data.test_per_class=10 \
        --set longtail.imbalance=4 --set partition.clients=8 --set partition.min_size=1 --set server_set.per_class=3 \
        --set model.width=4 --set pretrain.epochs=1 --set federated.rounds=3 --set federated.cohort=8 --set align.steps=3 \
        --set federated.optimiser.lr=0.003 --set federated.batch_size=32
}

# Losses of two runs' records, epoch by epoch and round by round: the largest relative difference, which must be small.
same() {
    python3 - "$1" "$2" <<'END'
import glob, json, sys
def losses(folder):
    files = sorted(glob.glob(folder + "/**/metrics.jsonl", recursive=True))
    lines = [json.loads(line) for file in files for line in open(file)]
    return [(l.get("stage"), l.get("round", l.get("epoch")), l["loss"]) for l in lines if l.get("loss") is not None]
a, b = losses(sys.argv[1]), losses(sys.argv[2])
assert a and [x[:2] for x in a] == [x[:2] for x in b], f"{len(a)} and {len(b)} records"
worst = max(abs(x[2] - y[2]) / max(abs(x[2]), 1e-6) for x, y in zip(a, b))
print(f"{len(a)} losses, the largest relative difference {worst:.1e}")
sys.exit(worst > 1e-3)
END
}

rounds() {
    rm -rf by-cpu* by-card* again* && run by-cpu cpu cpu && run by-card "$engine" "$device" && run again "$engine" "$device" || return 1
    local model
    for model in $(cd by-card && find . -name model.safetensors); do
        cmp "by-card/$model" "again/$model" || { echo "$model: two runs on the card differ"; return 1; }
    done
    same by-cpu by-card
}

# What a model answers on the CPU and on the device.
asked() {
    local on
    for on in cpu "$device"; do
        "$fedllava" -q mllm ask "$1" "$models/wide.png" "What is in the picture?" --greedy --max-new-tokens 8 --device "$on" \
            >"answer-$(basename "$1")-${on%%:*}.txt" || return 1
    done
    cmp "answer-$(basename "$1")-cpu.txt" "answer-$(basename "$1")-${device%%:*}.txt"
}

# CLIP, LLaVA and SmolVLM by candle; a round of LoRA.
candle() {
    local on
    asked data/demo-llava && asked data/demo-mllm && asked "$models/smolvlm" || return 1
    rm -rf clip-* lora-*
    cat >lora.toml <<'END'
task = { kind = "mllm", model = "data/demo-mllm", answer_tokens = 6, recompute = false, lora = { rank = 8, alpha = 16.0 } }
data = { kind = "questions", form = "name", options = 4, train = 64, test = 32 }
scenario = { kind = "hybrid", keep = 0.7, clients = 8, alpha = 0.5 }
pretrain.enabled = false
align.enabled = false
federated = { rounds = 1, cohort = 8, local_epochs = 1, batch_size = 8 }
END
    for on in cpu "$device"; do
        run "clip-${on%%:*}" candle "$on" || return 1
        "$fedllava" -q run lora.toml --set run.dir="lora-${on%%:*}" --set run.device="$on" || return 1
    done
    same clip-cpu "clip-${device%%:*}" && same lora-cpu "lora-${device%%:*}"
}

export fedllava models said engine device
if [ -n "${FEDLLAVA_CARD:-}" ]; then
    step machine 20 nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv,noheader
fi
step parity 200 "$program" engine::cuda --skip a_local_step --test-threads 2
step rounds 200 bash -c rounds
step candle 200 bash -c candle
step times 120 "$program" a_local_step --nocapture
if [ -n "${FEDLLAVA_CARD:-}" ] && command -v compute-sanitizer >/dev/null; then
    step sanitizer 140 compute-sanitizer --error-exitcode 9 "$program" clients_side_by_side_get
else
    table+=("sanitizer  not run        no compute-sanitizer, or no GPU: the emulated card has the address sanitizer")
fi
printf '%s\n' "${table[@]}"
grep -hE ' ms a step' "$said/times.txt"
say "all of what was said: $said"
exit $failed
