// What every kernel here stands on. All files of this folder are one program: `kernels.rs` puts them one after the other.
//
// Layouts. K clients stand side by side.
//   parameters, gradients, moments   [K, P]          the flat slice of `nn::Layout`, one after the other
//   a value of the network           [K, C, R, S]    channels (or features), rows, pixels (1 for features)
//   its rows at the seam             (N, C, S)       rows of client 0, then of client 1, …; `first[k]` is client k's first
//   columns of a convolution         [K, C·k·k, R·S]
// R is the largest of `rows[k]`, and client k has `rows[k]` of them: they lie in front, so that channel c's real values
// are `rows[k]·S` floats in one piece. What lies behind them is 0 in every value and in every gradient: products over
// all R rows are exact for each client.
//
// A kernel of `KERNEL` has one thread for each element; one of `BLOCK_KERNEL` one block for each sum, of a power of two of
// threads, 256 at most. Sums go in doubles and in one order: no atomics, so the same bytes every time.

#ifdef __CUDACC__
#define KERNEL(name, ...) extern "C" __global__ void name(__VA_ARGS__)
#define BLOCK_KERNEL(name, ...) extern "C" __global__ void __launch_bounds__(256) name(__VA_ARGS__)
#define DEVICE static __device__ __forceinline__
#define SHARED(type, name, count) __shared__ type name[count]
#define BARRIER() __syncthreads()
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif
#else
#include "emulate.h"
#endif

typedef unsigned char byte;
typedef unsigned int u32;
typedef unsigned long long u64;

// The thread's number in the grid.
DEVICE u32 element() { return blockIdx.x * blockDim.x + threadIdx.x; }

// Where element `i` of a value [K, C, R, S] lies.
struct Place {
    u32 client, channel, row, pixel;
};

DEVICE Place place(u32 i, u32 channels, u32 capacity, u32 pixels) {
    Place at;
    at.pixel = i % pixels;
    i /= pixels;
    at.row = i % capacity;
    i /= capacity;
    at.channel = i % channels;
    at.client = i / channels;
    return at;
}

// The sums of two numbers over a block, in the first thread; the others get what is left.
struct Pair {
    double a, b;
};

DEVICE Pair block_sum(Pair own, double* sums) {
    u32 t = threadIdx.x;
    sums[2 * t] = own.a;
    sums[2 * t + 1] = own.b;
    BARRIER();
    for (u32 half = blockDim.x / 2; half > 0; half /= 2) {
        if (t < half) {
            sums[2 * t] += sums[2 * (t + half)];
            sums[2 * t + 1] += sums[2 * (t + half) + 1];
        }
        BARRIER();
    }
    Pair all;
    all.a = sums[0];
    all.b = sums[1];
    return all;
}
