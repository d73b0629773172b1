#!/usr/bin/env bash
# Compiles the CUDA engine's kernels for capabilities 8.0, 9.0 and 10.0 (or those given) and prints what each kernel uses:
# registers, stack, spilled bytes, shared memory. Fails where one spills. Needs nvcc, no GPU:
#
#     eval "$(scripts/cuda_toolkit.sh)"; scripts/cuda_report.sh [80 90 …]
set -euo pipefail

cd "$(dirname "$0")/../src/core/nn/engine/cuda/kernels"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# The program: the files in the order of mod.rs.
for file in $(sed -n 's/.*include_str!("\(.*\.cu\)").*/\1/p' mod.rs); do
    printf '#line 1 "%s"\n' "$file"
    cat "$file"
done >"$folder/kernels.cu"

[ $# -gt 0 ] || set -- 80 90 100
printf '%-22s %4s %10s %6s %6s %7s\n' kernel sm registers stack spills shared
for arch in "$@"; do
    nvcc -std=c++17 -fmad=false -arch="sm_$arch" -Xptxas -v -cubin -o "$folder/kernels.cubin" "$folder/kernels.cu" 2>"$folder/said" ||
        { cat "$folder/said" >&2; exit 1; }
    awk -v arch="$arch" '
        /Compiling entry function/ { split($0, part, "\x27"); name = part[2] }
        /bytes stack frame/ { stack = $1; spills = $5 + $9 }
        /Used [0-9]+ registers/ {
            shared = 0
            for (i = 2; i <= NF; i++) { if ($i == "registers,") registers = $(i - 1); if ($i == "smem" || $i == "smem,") shared = $(i - 2) }
            printf "%-22s %4s %10s %6s %6s %7s\n", name, arch, registers, stack, spills, shared
            if (spills > 0) bad = 1
        }
        END { exit bad }' "$folder/said" || { echo "a kernel spills registers" >&2; exit 1; }
done
