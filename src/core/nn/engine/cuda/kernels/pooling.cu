// Pooling, option-A shortcuts, flattening. Rows without an image are 0 before, and stay 0.

// Maximum over windows; `index` keeps the winning tap, the first of equal ones. Padding never wins.
KERNEL(max_pool, const float* x, int planes, int height, int width, int out_height, int out_width, int kernel, int stride,
       int padding, float* out, byte* index) {
    u32 i = element();
    u32 pixels = out_height * out_width;
    if (i >= (u32)planes * pixels) return;
    const float* plane = x + (size_t)(i / pixels) * height * width;
    int top = (int)(i % pixels / out_width) * stride - padding, left = (int)(i % pixels % out_width) * stride - padding;
    float best = -INFINITY;
    int winner = 0;
    for (int tap = 0; tap < kernel * kernel; tap++) {
        int y = top + tap / kernel, x0 = left + tap % kernel;
        if (y < 0 || y >= height || x0 < 0 || x0 >= width) continue;
        float v = plane[y * width + x0];
        if (v > best) best = v, winner = tap;
    }
    out[i] = best;
    index[i] = (byte)winner;
}

// Each input pixel gathers from the windows that it won.
KERNEL(max_pool_gradient, const float* gradient, const byte* index, int planes, int height, int width, int out_height,
       int out_width, int kernel, int stride, int padding, int add, float* out) {
    u32 i = element();
    if (i >= (u32)planes * height * width) return;
    u32 plane = i / (height * width), pixel = i % (height * width);
    int y = pixel / width + padding, x = pixel % width + padding;
    float sum = 0.0f;
    for (int ty = 0; ty < kernel && ty <= y; ty++)
        for (int tx = 0; tx < kernel && tx <= x; tx++) {
            int oy = (y - ty) / stride, ox = (x - tx) / stride;
            if (oy * stride != y - ty || ox * stride != x - tx || oy >= out_height || ox >= out_width) continue;
            size_t from = (size_t)plane * out_height * out_width + oy * out_width + ox;
            if (index[from] == ty * kernel + tx) sum += gradient[from];
        }
    out[i] = add ? out[i] + sum : sum;
}

// Mean over windows without padding.
KERNEL(mean_pool, const float* x, int planes, int height, int width, int out_height, int out_width, int kernel, int stride,
       float* out) {
    u32 i = element();
    u32 pixels = out_height * out_width;
    if (i >= (u32)planes * pixels) return;
    const float* plane = x + (size_t)(i / pixels) * height * width;
    int top = (int)(i % pixels / out_width) * stride, left = (int)(i % pixels % out_width) * stride;
    float sum = 0.0f;
    for (int tap = 0; tap < kernel * kernel; tap++) sum += plane[(top + tap / kernel) * width + left + tap % kernel];
    out[i] = sum * (1.0f / (kernel * kernel));
}

KERNEL(mean_pool_gradient, const float* gradient, int planes, int height, int width, int out_height, int out_width,
       int kernel, int stride, int add, float* out) {
    u32 i = element();
    if (i >= (u32)planes * height * width) return;
    u32 plane = i / (height * width), pixel = i % (height * width);
    int y = pixel / width, x = pixel % width;
    float sum = 0.0f;
    for (int ty = 0; ty < kernel && ty <= y; ty++)
        for (int tx = 0; tx < kernel && tx <= x; tx++) {
            int oy = (y - ty) / stride, ox = (x - tx) / stride;
            if (oy * stride != y - ty || ox * stride != x - tx || oy >= out_height || ox >= out_width) continue;
            sum += gradient[(size_t)plane * out_height * out_width + oy * out_width + ox];
        }
    sum *= 1.0f / (kernel * kernel);
    out[i] = add ? out[i] + sum : sum;
}

// Mean over all pixels of a plane.
KERNEL(plane_mean, const float* x, int planes, int pixels, float* out) {
    u32 i = element();
    if (i >= (u32)planes) return;
    double sum = 0.0;
    for (int p = 0; p < pixels; p++) sum += x[(size_t)i * pixels + p];
    out[i] = (float)(sum / pixels);
}

KERNEL(plane_mean_gradient, const float* gradient, int planes, int pixels, int add, float* out) {
    u32 i = element();
    if (i >= (u32)planes * pixels) return;
    float v = gradient[i / pixels] / pixels;
    out[i] = add ? out[i] + v : v;
}

// Every `stride`-th pixel of `in_channels`, which come after `before` channels of zeros.
KERNEL(subsample, const float* x, int lanes, int in_channels, int channels, int capacity, int height, int width,
       int out_height, int out_width, int stride, int before, float* out) {
    u32 i = element();
    if (i >= (u32)lanes * channels * capacity * out_height * out_width) return;
    Place at = place(i, channels, capacity, out_height * out_width);
    int channel = (int)at.channel - before, y = at.pixel / out_width * stride, x0 = at.pixel % out_width * stride;
    float v = 0.0f;
    if (channel >= 0 && channel < in_channels)
        v = x[((size_t)((at.client * in_channels + channel) * capacity + at.row) * height + y) * width + x0];
    out[i] = v;
}

KERNEL(subsample_gradient, const float* gradient, int lanes, int in_channels, int channels, int capacity, int height,
       int width, int out_height, int out_width, int stride, int before, int add, float* out) {
    u32 i = element();
    if (i >= (u32)lanes * in_channels * capacity * height * width) return;
    Place at = place(i, in_channels, capacity, height * width);
    int y = at.pixel / width, x = at.pixel % width;
    float v = 0.0f;
    if (y % stride == 0 && x % stride == 0) {
        u32 plane = (at.client * channels + before + at.channel) * capacity + at.row;
        v = gradient[((size_t)plane * out_height + y / stride) * out_width + x / stride];
    }
    out[i] = add ? out[i] + v : v;
}

// [K, C, R, S] to [K, C·S, R, 1].
KERNEL(flatten, const float* x, int lanes, int channels, int capacity, int pixels, float* out) {
    u32 i = element();
    if (i >= (u32)lanes * channels * capacity * pixels) return;
    Place at = place(i, channels, capacity, pixels);
    out[(size_t)((at.client * channels + at.channel) * pixels + at.pixel) * capacity + at.row] = x[i];
}

KERNEL(flatten_gradient, const float* gradient, int lanes, int channels, int capacity, int pixels, int add, float* out) {
    u32 i = element();
    if (i >= (u32)lanes * channels * capacity * pixels) return;
    Place at = place(i, channels, capacity, pixels);
    float v = gradient[(size_t)((at.client * channels + at.channel) * pixels + at.pixel) * capacity + at.row];
    out[i] = add ? out[i] + v : v;
}
