// What convolutions need around their products: out [O, R·S'] = W [O, C·k·k] · columns [C·k·k, R·S'], client by client.

// Columns of one group of channels: `channels` of them from `from` on, of a value with `all`.
// One thread for each (client, channel, row, output pixel) writes its k·k taps.
KERNEL(gather_columns, const float* x, int lanes, int all, int from, int channels, int capacity, int height, int width,
       int out_height, int out_width, int kernel, int stride, int padding, float* columns) {
    u32 i = element();
    u32 pixels = out_height * out_width;
    if (i >= (u32)lanes * channels * capacity * pixels) return;
    Place at = place(i, channels, capacity, pixels);
    const float* plane = x + ((size_t)(at.client * all + from + at.channel) * capacity + at.row) * height * width;
    int top = (int)(at.pixel / out_width) * stride - padding, left = (int)(at.pixel % out_width) * stride - padding;
    size_t line = (size_t)capacity * pixels;
    float* to = columns + (size_t)(at.client * channels + at.channel) * kernel * kernel * line + at.row * pixels + at.pixel;
    for (int ty = 0; ty < kernel; ty++)
        for (int tx = 0; tx < kernel; tx++, to += line) {
            int y = top + ty, x0 = left + tx;
            *to = y >= 0 && y < height && x0 >= 0 && x0 < width ? plane[y * width + x0] : 0.0f;
        }
}

// The gradient of `gather_columns`: each input pixel gathers what its columns got, so nothing is added twice.
KERNEL(scatter_columns, const float* columns, int lanes, int all, int from, int channels, int capacity, int height,
       int width, int out_height, int out_width, int kernel, int stride, int padding, int add, float* gradient) {
    u32 i = element();
    if (i >= (u32)lanes * channels * capacity * height * width) return;
    Place at = place(i, channels, capacity, height * width);
    int y = at.pixel / width + padding, x = at.pixel % width + padding;
    u32 pixels = out_height * out_width;
    size_t line = (size_t)capacity * pixels;
    const float* of = columns + (size_t)(at.client * channels + at.channel) * kernel * kernel * line + at.row * pixels;
    float sum = 0.0f;
    for (int ty = 0; ty < kernel && ty <= y; ty++) {
        int oy = (y - ty) / stride;
        if (oy * stride != y - ty || oy >= out_height) continue;
        for (int tx = 0; tx < kernel && tx <= x; tx++) {
            int ox = (x - tx) / stride;
            if (ox * stride != x - tx || ox >= out_width) continue;
            sum += of[(ty * kernel + tx) * line + oy * out_width + ox];
        }
    }
    float* to = gradient + ((size_t)(at.client * all + from + at.channel) * capacity + at.row) * height * width + at.pixel;
    *to = add ? *to + sum : sum;
}

// Adds each channel's bias, `params[k·size + offset + c]`, to real rows.
KERNEL(add_bias, const float* params, const int* rows, int lanes, int channels, int capacity, int pixels, int size,
       int offset, float* value) {
    u32 i = element();
    if (i >= (u32)lanes * channels * capacity * pixels) return;
    Place at = place(i, channels, capacity, pixels);
    if (at.row < (u32)rows[at.client]) value[i] += params[(size_t)at.client * size + offset + at.channel];
}

// The bias's gradient: the sum of a channel, one block for each (client, channel).
BLOCK_KERNEL(channel_sums, const float* gradient, const int* rows, int channels, int capacity, int pixels, int size,
             int offset, float* grads) {
    SHARED(double, sums, 512);
    u32 client = blockIdx.x / channels, channel = blockIdx.x % channels;
    const float* of = gradient + (size_t)blockIdx.x * capacity * pixels;
    Pair own = {0.0, 0.0};
    for (u32 i = threadIdx.x; i < (u32)rows[client] * pixels; i += blockDim.x) own.a += of[i];
    own = block_sum(own, sums);
    if (threadIdx.x == 0) grads[(size_t)client * size + offset + channel] = (float)own.a;
}
