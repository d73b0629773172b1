// Losses in closed form on logits [K, classes, R] (`nn::loss`): one thread for each row (client, row). Gradients are
// added, a row's loss is written to losses [K, R]; both are divided by the client's rows on their way into the gradient.

DEVICE double log_sum_exp(const float* z, int classes, int step, float by) {
    float top = -INFINITY;
    for (int c = 0; c < classes; c++) top = fmaxf(top, z[(size_t)c * step] / by);
    double sum = 0.0;
    for (int c = 0; c < classes; c++) sum += exp((double)(z[(size_t)c * step] / by - top));
    return top + log(sum);
}

// −w log softmax(z)[y]; labels [K, R], weights [K, R] or absent.
KERNEL(cross_entropy, const float* logits, const int* labels, const double* weights, const int* rows, int lanes,
       int classes, int capacity, float scale, float* gradient, double* losses) {
    u32 i = element();
    if (i >= (u32)lanes * capacity) return;
    u32 client = i / capacity, row = i % capacity;
    losses[i] = 0.0;
    if (row >= (u32)rows[client]) return;
    size_t at = (size_t)client * classes * capacity + row;
    const float* z = logits + at;
    double lse = log_sum_exp(z, classes, capacity, 1.0f), weight = weights ? weights[i] : 1.0;
    double step = weight * ((double)scale / rows[client]);
    losses[i] = weight * (lse - z[(size_t)labels[i] * capacity]);
    for (int c = 0; c < classes; c++) {
        double p = exp(z[(size_t)c * capacity] - lse) - (c == labels[i] ? 1.0 : 0.0);
        gradient[at + (size_t)c * capacity] += (float)(p * step);
    }
}

// w KL(q ‖ softmax(z / T)); q [K, classes, R], weights [K, R].
KERNEL(kl_divergence, const float* logits, const float* q, const float* weights, const int* rows, int lanes, int classes,
       int capacity, float temperature, float scale, float* gradient, double* losses) {
    u32 i = element();
    if (i >= (u32)lanes * capacity) return;
    u32 client = i / capacity, row = i % capacity;
    losses[i] = 0.0;
    if (row >= (u32)rows[client]) return;
    size_t at = (size_t)client * classes * capacity + row;
    double lse = log_sum_exp(logits + at, classes, capacity, temperature), weight = weights[i], total = 0.0;
    double step = weight * scale / ((double)temperature * rows[client]);
    for (int c = 0; c < classes; c++) {
        size_t own = at + (size_t)c * capacity;
        double log_p = (double)(logits[own] / temperature) - lse, share = q[own];
        if (share > 0.0) total += weight * share * (log(share) - log_p);
        gradient[own] += (float)((exp(log_p) - share) * step);
    }
    losses[i] = total;
}

// KL(softmax(t) ‖ softmax(z)); teacher [K, classes, R].
KERNEL(kl_of_logits, const float* logits, const float* teacher, const int* rows, int lanes, int classes, int capacity,
       float* gradient, double* losses) {
    u32 i = element();
    if (i >= (u32)lanes * capacity) return;
    u32 client = i / capacity, row = i % capacity;
    losses[i] = 0.0;
    if (row >= (u32)rows[client]) return;
    size_t at = (size_t)client * classes * capacity + row;
    double lse_z = log_sum_exp(logits + at, classes, capacity, 1.0f);
    double lse_t = log_sum_exp(teacher + at, classes, capacity, 1.0f), total = 0.0;
    for (int c = 0; c < classes; c++) {
        size_t own = at + (size_t)c * capacity;
        double log_p = logits[own] - lse_z, log_q = teacher[own] - lse_t;
        total += exp(log_q) * (log_q - log_p);
        gradient[own] += (float)((exp(log_p) - exp(log_q)) / rows[client]);
    }
    losses[i] = total;
}
