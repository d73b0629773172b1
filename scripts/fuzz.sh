#!/usr/bin/env bash
# A million damaged files before every reader (tests/fuzz.rs), by parts with seeds of their own; a log line each part.
#
#   scripts/fuzz.sh [CHANGES] [LOG]      # 1000000, fuzz.log; hours
#
# A failure keeps the file that did it below $TMPDIR and says where; this script then ends with the test's exit code.
set -euo pipefail
cd "$(dirname "$0")/.."
changes=${1:-1000000}
log=${2:-fuzz.log}
note() { printf '%s %s\n' "$(date -u +%FT%TZ)" "$*" | tee -a "$log"; }

note "begins: $changes changes of each file, commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
cargo test --profile checked --test main --no-run
began=$(date +%s)
if FEDLLAVA_FUZZ=$changes cargo test --profile checked --test main -- fuzz:: --nocapture 2>&1 | tee -a "$log"; then
    note "ends: nothing panicked, nothing was called our mistake, nothing took long; $(($(date +%s) - began)) s"
else
    status=$?
    note "ends with a failure after $(($(date +%s) - began)) s: see above"
    exit "$status"
fi
