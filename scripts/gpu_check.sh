#!/usr/bin/env bash
# Whether the CUDA engine is right and how fast it is, on a machine that has a GPU but neither Rust nor a network:
#
#     scripts/gpu_check.sh --emulate            here, without a GPU: every step below on the emulated card
#     scripts/gpu_check.sh --pack FILE.tar.xz   where Rust is: builds with CUDA (see cuda_toolkit.sh), packs program and script
#     ./gpu_check.sh [FOLDER]                   on the GPU, in the unpacked package; FOLDER for what is said, default ./said
#
# Steps: kernels and whole local steps beside the CPU engine; times of CReFF's step for 1, 8 and 20 clients with the floor
# beside them; the same kernels under compute-sanitizer where there is one. Needs libcuda (the driver's), libcublas and
# libnvrtc of CUDA 13; those of Python's packages are found. GPU=1 takes the second GPU. Ends with a table, and with 1
# where a step failed.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
say() { printf '%s\n' "$*" >&2; }

# The test program of `fedllava-core` as cargo built it.
built() {
    cargo test --quiet -p fedllava-core --lib --no-run --message-format=json "$@" |
        sed -n 's/.*"executable":"\([^"]*fedllava_core-[^"]*\)".*/\1/p' | tail -1
}

case ${1:-} in
--emulate)
    cd "$here/.."
    program=$(built) || exit 1
    said=${2:-$(mktemp -d)}
    ;;
--pack)
    cd "$here/.."
    program=$(built --features cuda) || exit 1
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    mkdir "$folder/gpu_check"
    strip -o "$folder/gpu_check/kernels" "$program"
    cp "$here/gpu_check.sh" "$folder/gpu_check/"
    tar -C "$folder" -cJf "${2:?a file to pack into}" gpu_check
    say "$2: $(($(stat -c %s "$2") / 1048576)) MiB"
    exit 0
    ;;
*)
    program=$here/kernels
    said=${1:-$here/said}
    export FEDLLAVA_CARD=${GPU:-0}
    libraries=$(python3 -c 'import site, glob
for base in site.getsitepackages() + [site.getusersitepackages()]:
    for found in glob.glob(base + "/nvidia/*/lib"): print(found, end=":")' 2>/dev/null)
    export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:-}
    ;;
esac
[ -x "$program" ] || { say "no program $program"; exit 1; }
mkdir -p "$said"

table=()
failed=0
# A step: its name, the seconds it may take, its command; what it says goes to a file.
step() {
    local name=$1 most=$2 start=$SECONDS result=ok
    shift 2
    timeout "$most" "$@" >"$said/$name.txt" 2>&1 || { result="failed ($?)"; failed=1; }
    table+=("$(printf '%-12s %-14s %4d s   %s' "$name" "$result" $((SECONDS - start)) "$(grep -m1 '^test result' "$said/$name.txt")")")
}

if [ -n "${FEDLLAVA_CARD:-}" ]; then
    step machine 20 nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv,noheader
fi
step parity 200 "$program" engine::cuda --skip a_local_step --test-threads 2
step times 120 "$program" a_local_step --nocapture
if [ -n "${FEDLLAVA_CARD:-}" ] && command -v compute-sanitizer >/dev/null; then
    step sanitizer 140 compute-sanitizer --error-exitcode 9 "$program" clients_side_by_side_get
else
    table+=("sanitizer    not run        no compute-sanitizer, or no GPU: the emulated card has the address sanitizer")
fi
printf '%s\n' "${table[@]}"
grep -hE ' ms a step' "$said/times.txt"
say "all of what was said: $said"
exit $failed
