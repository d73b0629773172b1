// Batch norm, with the sum and the rectifier behind it.
//
// state [5, K, C]: mean, 1/σ, unbiased variance, and the scale γ/σ and shift β − mean·γ/σ that they make.

DEVICE void keep_norm(float* state, u32 all, u32 i, double mean, double inverse, double unbiased, float gamma, float beta) {
    double scale = gamma * inverse;
    state[i] = (float)mean;
    state[all + i] = (float)inverse;
    state[2 * all + i] = (float)unbiased;
    state[3 * all + i] = (float)scale;
    state[4 * all + i] = (float)(beta - mean * scale);
}

// Statistics of the batch over client k's own rows, one block for each (client, channel). Deviations are taken from the
// first value, so that squares do not cancel.
BLOCK_KERNEL(norm_statistics, const float* x, const float* params, const int* rows, int lanes, int channels, int capacity,
             int pixels, int size, int gamma, int beta, float eps, float* state) {
    SHARED(double, sums, 512);
    u32 client = blockIdx.x / channels, channel = blockIdx.x % channels;
    u32 n = (u32)rows[client] * pixels;
    const float* of = x + (size_t)blockIdx.x * capacity * pixels;
    float middle = n > 0 ? of[0] : 0.0f;
    Pair own = {0.0, 0.0};
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) {
        double d = (double)of[i] - middle;
        own.a += d;
        own.b += d * d;
    }
    own = block_sum(own, sums);
    if (threadIdx.x != 0) return;
    const float* p = params + (size_t)client * size + channel;
    double count = n > 0 ? n : 1, squares = own.b - own.a * own.a / count;
    double inverse = 1.0 / sqrt(squares / count + eps), unbiased = n > 1 ? squares / (n - 1) : 0.0;
    keep_norm(state, lanes * channels, blockIdx.x, middle + own.a / count, inverse, unbiased, p[gamma], p[beta]);
}

// The same from running statistics.
KERNEL(norm_running, const float* params, int lanes, int channels, int size, int gamma, int beta, int mean, int var,
       float eps, float* state) {
    u32 i = element();
    if (i >= (u32)lanes * channels) return;
    const float* p = params + (size_t)(i / channels) * size + i % channels;
    keep_norm(state, lanes * channels, i, p[mean], 1.0 / sqrt((double)p[var] + eps), 0.0, p[gamma], p[beta]);
}

// Moves the running statistics of clients that have rows.
KERNEL(norm_update, const float* state, const int* rows, int lanes, int channels, int size, int mean, int var,
       float momentum, float* params) {
    u32 i = element(), all = lanes * channels;
    if (i >= all || rows[i / channels] == 0) return;
    float* p = params + (size_t)(i / channels) * size + i % channels;
    p[mean] = (1.0f - momentum) * p[mean] + momentum * state[i];
    p[var] = (1.0f - momentum) * p[var] + momentum * state[2 * all + i];
}

DEVICE float normed(float v, const float* state, u32 all, u32 channel) {
    return state ? fmaf(v, state[3 * all + channel], state[4 * all + channel]) : v;
}

// `out = relu?(norm?(a) + norm?(b))`; b and both states may be absent.
KERNEL(fuse, const float* a, const float* state_a, const float* b, const float* state_b, const int* rows, int lanes,
       int channels, int capacity, int pixels, int relu, float* out) {
    u32 i = element();
    if (i >= (u32)lanes * channels * capacity * pixels) return;
    Place at = place(i, channels, capacity, pixels);
    u32 channel = at.client * channels + at.channel, all = lanes * channels;
    float v = 0.0f;
    if (at.row < (u32)rows[at.client]) {
        v = normed(a[i], state_a, all, channel);
        if (b) v += normed(b[i], state_b, all, channel);
        if (relu) v = v > 0.0f ? v : 0.0f;
    }
    out[i] = v;
}

// The gradients of γ and β, and of batch statistics the mean of the gradient and its slope along the deviation, slopes
// [2, K, C] (0 where statistics are the running ones). One block for each (client, channel); `y`, where it is there, is
// the rectified output, and the gradient passes where it is positive.
BLOCK_KERNEL(norm_sums, const float* gradient, const float* y, const float* z, const float* state, const int* rows,
             int lanes, int channels, int capacity, int pixels, int batch, int size, int gamma, int beta, float* grads,
             float* slopes) {
    SHARED(double, sums, 512);
    u32 client = blockIdx.x / channels, channel = blockIdx.x % channels, all = lanes * channels;
    u32 n = (u32)rows[client] * pixels;
    size_t at = (size_t)blockIdx.x * capacity * pixels;
    float mean = state[blockIdx.x];
    Pair own = {0.0, 0.0};
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) {
        float g = !y || y[at + i] > 0.0f ? gradient[at + i] : 0.0f;
        own.a += g;
        own.b += (double)g * (z[at + i] - mean);
    }
    own = block_sum(own, sums);
    if (threadIdx.x != 0) return;
    double inverse = state[all + blockIdx.x], count = n > 0 ? n : 1;
    float* g = grads + (size_t)client * size + channel;
    g[gamma] = (float)(own.b * inverse);
    g[beta] = (float)own.a;
    slopes[blockIdx.x] = batch ? (float)(own.a / count) : 0.0f;
    slopes[all + blockIdx.x] = batch ? (float)(own.b / count * inverse * inverse) : 0.0f;
}

// The gradient of one term of `fuse`, written or added: gated by `y`, and through the norm where there is one.
KERNEL(fuse_gradient, const float* gradient, const float* y, const float* z, const float* state, const float* slopes,
       const int* rows, int lanes, int channels, int capacity, int pixels, int add, float* out) {
    u32 i = element();
    if (i >= (u32)lanes * channels * capacity * pixels) return;
    Place at = place(i, channels, capacity, pixels);
    u32 channel = at.client * channels + at.channel, all = lanes * channels;
    float v = 0.0f;
    if (at.row < (u32)rows[at.client]) {
        v = !y || y[i] > 0.0f ? gradient[i] : 0.0f;
        if (state) v = state[3 * all + channel] * (v - slopes[channel] - (z[i] - state[channel]) * slopes[all + channel]);
    }
    out[i] = add ? out[i] + v : v;
}
