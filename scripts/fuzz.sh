#!/usr/bin/env bash
# A million damaged files before every reader (tests/fuzz.rs), by parts with seeds of their own; a log line each part and
# file.
#
#   scripts/fuzz.sh [CHANGES] [LOG]      # 1000000, fuzz.log; days on two cores
#   FROM=50000 scripts/fuzz.sh 1000000   # goes on
#   PROFILE=dev scripts/fuzz.sh 5000     # with the tests' own build: slower, nothing to compile
#
# A failure keeps the file that did it below $TMPDIR and says where; this script then ends with the test's exit code.
set -euo pipefail
cd "$(dirname "$0")/.."
changes=${1:-1000000}
log=${2:-fuzz.log}
part=10000
profile=${PROFILE:-checked}
note() { printf '%s %s\n' "$(date -u +%FT%TZ)" "$*" | tee -a "$log"; }

note "begins: $changes changes of each file, commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown), $profile"
cargo test --profile "$profile" --test main --no-run
for ((from = ${FROM:-0}; from < changes; from += part)); do
    to=$((from + part < changes ? from + part : changes))
    began=$(date +%s)
    if FEDLLAVA_FUZZ=$from..$to cargo test --profile "$profile" --test main -- fuzz:: --nocapture 2>&1 | tee -a "$log"; then
        note "changes $from to $to: nothing panicked, was called our mistake or took long; $(($(date +%s) - began)) s"
    else
        status=$?
        note "changes $from to $to: a failure after $(($(date +%s) - began)) s: see above"
        exit "$status"
    fi
done
note "ends"
