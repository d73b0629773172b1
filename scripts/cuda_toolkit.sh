#!/usr/bin/env bash
# Makes a CUDA toolkit that `cargo build --release --features cuda` compiles and links with, from PyPI's wheels, for a
# machine that has none and where nobody is root. About 1 GB. Prints the exports:
#
#     eval "$(scripts/cuda_toolkit.sh)"               # or scripts/cuda_toolkit.sh FOLDER, default .venv/cuda
#     cargo build --release --features cuda
#
# CUDA_COMPUTE_CAP (default 90: H100, H200) chooses the GPU that kernels are compiled for, PYTHON the interpreter.
# A second call changes nothing and prints the same. Linking needs libcuda.so, which only a driver has: where there is
# none, a stub stands in that defines every function of cuda.h; called, each says CUDA_ERROR_STUB_LIBRARY (34).
set -euo pipefail

cd "$(dirname "$0")/.."
folder=${1:-.venv/cuda}
python=${PYTHON:-python3}
wheels=(nvidia-cuda-nvcc==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cublas==13.0.2.14 nvidia-curand==10.4.0.35
    nvidia-cuda-nvrtc==13.0.88 nvidia-cuda-cccl==13.0.85 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88
    nvidia-nvjitlink==13.0.88)

say() { echo "$*" >&2; }

if [ ! -f "$folder/complete" ]; then
    say "making a CUDA toolkit in $folder"
    "$python" -m venv "$folder"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "${wheels[@]}" >&2
fi
folder=$(cd "$folder" && pwd)
home=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia/cu13
[ -x "$home/bin/nvcc" ] || { say "$home/bin/nvcc is missing: delete $folder and try again"; exit 4; }

# Wheels hold libNAME.so.13 alone; a linker looks for libNAME.so.
for library in "$home"/lib/lib*.so.*; do
    plain=${library%%.so.*}.so
    [ -e "$plain" ] || ln -s "$(basename "$library")" "$plain"
done

stubs=$folder/stubs
if [ ! -e "$stubs/libcuda.so.1" ]; then
    mkdir -p "$stubs"
    cc=${CC:-cc}
    # After the preprocessor, so that cuMemAlloc is cuMemAlloc_v2 as in the driver; `name(` leaves pointer types out.
    "$cc" -E -P -I"$home/include" "$home/include/cuda.h" | tr '\n' ' ' | tr ';' '\n' |
        sed -nE 's/^ *(__attribute__\(\([^)]*\)\) *)?CUresult +(cu[A-Za-z0-9_]+) *\(.*/int \2(void) { return 34; }/p' |
        sort -u >"$stubs/libcuda.c"
    functions=$(wc -l <"$stubs/libcuda.c")
    [ "$functions" -gt 300 ] || { say "cuda.h declares only $functions functions that were understood"; exit 4; }
    "$cc" -shared -fPIC -w -Wl,-soname,libcuda.so.1 -o "$stubs/libcuda.so.1" "$stubs/libcuda.c"
    ln -sf libcuda.so.1 "$stubs/libcuda.so"
    say "stub of libcuda.so with $functions functions"
fi
touch "$folder/complete"

# A program linked with CUDA does not start without libcuda.so.1. Where no driver is installed the stub comes last on
# the path, after any driver that a container has mounted.
last=
installed=$(ldconfig -p 2>/dev/null || /sbin/ldconfig -p 2>/dev/null || true)
if ! grep -q 'libcuda\.so\.1 ' <<<"$installed"; then
    say "no NVIDIA driver is installed here: programs start with the stub and find no GPU"
    last=:$stubs
fi
printf 'export %s\n' \
    "CUDA_HOME='$home'" \
    "CUDA_PATH='$home'" \
    "CUDA_COMPUTE_CAP='${CUDA_COMPUTE_CAP:-90}'" \
    "PATH='$home/bin'\":\$PATH\"" \
    "LIBRARY_PATH='$home/lib:$stubs'\"\${LIBRARY_PATH:+:\$LIBRARY_PATH}\"" \
    "LD_LIBRARY_PATH='$home/lib'\"\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}\"'$last'"
