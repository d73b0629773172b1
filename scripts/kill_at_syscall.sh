#!/usr/bin/env bash
# Kills a run at calls that change the disk, then gives the same command again: every file must come out with the same
# bytes as without a kill (but for times.jsonl, which says when things were).
#
#   scripts/kill_at_syscall.sh BINARY CONFIG [KILLS]     # 30 kills, spread over all such calls of a whole run
#
# CONFIG must need no file beside it. Needs strace with injection (4.16 or newer), allowed to trace.
set -euo pipefail
binary=$(realpath "$1")
config=$(realpath "$2")
kills=${3:-30}
calls="rename renameat renameat2 link linkat unlink unlinkat mkdir mkdirat fsync fdatasync write ftruncate"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
run() { "$@" "$binary" run "$config" --threads 1 --set run.dir=runs/r >/dev/null 2>&1; }

mkdir "$work/whole" && cd "$work/whole"
run strace -f -qq -o "$work/calls" -e "trace=${calls// /,}"

# Which calls the main thread makes, and how often: injection counts by thread.
main=$(head -1 "$work/calls" | cut -d' ' -f1)
declare -A counts
total=0
for call in $calls; do
    n=$(grep -cE "^$main +$call\(" "$work/calls" || true)
    counts[$call]=$n
    total=$((total + n))
done
[ "$total" -gt 0 ] || { echo "no call was seen" >&2; exit 1; }

failed=0 done=0
for call in $calls; do
    n=${counts[$call]}
    [ "$n" -gt 0 ] || continue
    # Its share of the kills, at least one.
    share=$(((n * kills + total - 1) / total))
    for ((i = 0; i < share && done < kills; i++)); do
        at=$((1 + i * n / share))
        mkdir "$work/killed" && cd "$work/killed"
        # In a shell of its own, which keeps what it says of the kill to itself.
        (run strace -f -qq -o /dev/null -e "trace=$call" -e "inject=$call:signal=KILL:when=$at") 2>/dev/null || true
        if ! run env; then
            echo "$call, number $at of $n: the same command fails afterwards"
            failed=$((failed + 1))
        elif ! diff -rq --exclude=times.jsonl "$work/whole/runs" "$work/killed/runs"; then
            echo "$call, number $at of $n: other bytes"
            failed=$((failed + 1))
        fi
        done=$((done + 1))
        cd "$work" && rm -rf "$work/killed"
    done
done
echo "$done kills, $failed failed"
[ "$failed" -eq 0 ]
