#!/usr/bin/env bash
# A million damaged files before all readers (tests/fuzz.rs), by parts with seeds of their own; a log line each part and
# file. Each part gives each file so many seconds, so that quick readers see more.
#
#   scripts/fuzz.sh [CHANGES] [LOG]          # 1000000 in all, fuzz.log
#   FROM=50000 scripts/fuzz.sh 1000000       # goes on behind what a log's last part began at
#   SECONDS_EACH=60 scripts/fuzz.sh 1000000  # instead of 20
#   PROFILE=dev scripts/fuzz.sh 50000        # with the tests' own build: it checks overflows too, nothing to compile
#   PROGRAM=target/debug/deps/main-… scripts/fuzz.sh    # with that one, as it is
#
# A failure keeps the file that did it below $TMPDIR (a folder in memory is quickest) and says where; this script then ends
# with the test's exit code.
set -euo pipefail
cd "$(dirname "$0")/.."
changes=${1:-1000000}
log=${2:-fuzz.log}
part=100000
profile=${PROFILE:-checked}
export FEDLLAVA_FUZZ_SECONDS=${SECONDS_EACH:-20}
note() { printf '%s %s\n' "$(date -u +%FT%TZ)" "$*" | tee -a "$log"; }

note "begins: $changes changes in all, commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown), ${PROGRAM:-$profile}"
[[ -n ${PROGRAM:-} ]] || cargo test --profile "$profile" --test main --no-run
search() {
    if [[ -n ${PROGRAM:-} ]]; then "$PROGRAM" fuzz:: --nocapture; else cargo test --profile "$profile" --test main -- fuzz:: --nocapture; fi
}
out=$(mktemp)
total=0
for ((from = ${FROM:-0}; total < changes; from += part)); do
    began=$(date +%s)
    status=0
    FEDLLAVA_FUZZ=$from..$((from + part)) search >"$out" 2>&1 || status=$?
    cat "$out" | tee -a "$log"
    if ((status)); then
        note "part from $from: a failure after $(($(date +%s) - began)) s: see above"
        exit "$status"
    fi
    count=$(sed -n 's/^.*: \([0-9]*\) changes from .*$/\1/p' "$out" | paste -sd+)
    total=$((total + count))
    note "part from $from: $((count)) changes, $total in all; nothing panicked, was called our mistake or took long; $(($(date +%s) - began)) s"
done
note "ends"
