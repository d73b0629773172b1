#!/bin/sh
# Compares the CPU engine with PyTorch on this machine: medians, ratios, share of the measured peak.
#
#   scripts/bench_vs_pytorch.sh [--rows narrow,wide,wide-winograd,wide-avx512,cnn,narrow-eval,wide-eval,resnet18,resnet50] [--rounds 3] [--seconds 2]
#
# Installs PyTorch into .venv unless PYTHON names an interpreter that has it. Both sides start from the same weights
# and images; differing losses end the comparison. Run it on an idle machine.
set -eu
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then
    PYTHON=.venv/bin/python
    [ -x "$PYTHON" ] || python3 -m venv .venv
    "$PYTHON" -c 'import torch, numpy, safetensors' 2>/dev/null ||
        "$PYTHON" -m pip install --quiet torch numpy safetensors
fi
binary=$(cargo bench --bench versus --no-run 2>&1 | sed -n 's/.*Executable.*(\(.*\))$/\1/p')
exec "$PYTHON" scripts/bench_vs_pytorch.py "$binary" "$@"
