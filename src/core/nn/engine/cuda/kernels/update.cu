// What acts on whole parameter vectors [K, P]: pulls, sums of gradients, clipping, the optimisers' steps
// (`nn::optim`, PyTorch's rules). `size` is P; clients without rows stay as they are.
//
// marks [K, P], bits: 0 the optimiser moves it, 1 + j the client's pull j acts on it.

// Adds vector `from` to `to`, n floats each.
KERNEL(add_vector, const float* from, u32 n, float* to) {
    u32 i = element();
    if (i < n) to[i] += from[i];
}

// Pull j of every client. kinds [K]: 0 none, 1 proximal (`coefficient·(w − anchor)`), 2 linear (`coefficient·anchor`).
KERNEL(pull, const float* params, const float* anchors, const byte* marks, const int* kinds, const float* coefficients,
       const int* rows, int lanes, int size, int bit, float* grads) {
    u32 i = element();
    if (i >= (u32)lanes * size) return;
    u32 client = i / size;
    if (rows[client] == 0 || kinds[client] == 0 || !(marks[i] >> bit & 1)) return;
    float by = kinds[client] == 1 ? params[i] - anchors[i] : anchors[i];
    grads[i] += coefficients[client] * by;
}

// Squares of what one client's optimiser moves: one sum for each block.
BLOCK_KERNEL(squares, const float* grads, const byte* marks, u32 n, double* partial) {
    SHARED(double, sums, 512);
    Pair own = {0.0, 0.0};
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        if (marks[i] & 1) own.a += (double)grads[i] * grads[i];
    own = block_sum(own, sums);
    if (threadIdx.x == 0) partial[blockIdx.x] = own.a;
}

// Scales the same.
KERNEL(scale_marked, const byte* marks, u32 n, float by, float* grads) {
    u32 i = element();
    if (i < n && marks[i] & 1) grads[i] *= by;
}

// One step. kinds [K]: 0 none, 1 SGD, 2 SGD with momentum, 3 the same after Nesterov, 4 AdamW, 5 Adam.
// numbers [K, 8]: the rate; SGD: momentum, decay, 1 in the first step; Adam: β₁, β₂, ε, decay, 1 − β₁ᵗ, √(1 − β₂ᵗ).
// `first` and `second` hold the moments [K, P], or are absent.
KERNEL(update, const float* grads, const byte* marks, const int* kinds, const float* numbers, const int* rows, int lanes,
       int size, float* params, float* first, float* second) {
    u32 i = element();
    if (i >= (u32)lanes * size) return;
    u32 client = i / size;
    int kind = kinds[client];
    if (rows[client] == 0 || kind == 0 || !(marks[i] & 1)) return;
    const float* n = numbers + 8 * client;
    float p = params[i], g = grads[i], rate = n[0];
    if (kind == 1) {
        p -= rate * (g + n[2] * p);
    } else if (kind <= 3) {
        g += n[2] * p;
        float v = n[3] != 0.0f ? g : n[1] * first[i] + g;
        first[i] = v;
        p -= rate * (kind == 3 ? g + n[1] * v : v);
    } else {
        float b1 = n[1], b2 = n[2];
        if (kind == 4) p *= 1.0f - rate * n[4];
        else g += n[4] * p;
        float m = b1 * first[i] + (1.0f - b1) * g, v = b2 * second[i] + (1.0f - b2) * g * g;
        first[i] = m;
        second[i] = v;
        p -= rate / n[5] * m / (sqrtf(v) / n[6] + n[3]);
    }
    params[i] = p;
}
