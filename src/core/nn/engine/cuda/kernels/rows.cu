// Between the seam's order of rows and the engine's, and images out of bytes that lie on the card.

// Rows (N, C, S) into a value [K, C, R, S], written or added; 0 behind a client's own.
KERNEL(unpack_rows, const float* x, const int* rows, const int* first, int lanes, int channels, int capacity, int pixels,
       int add, float* value) {
    u32 i = element();
    if (i >= (u32)lanes * channels * capacity * pixels) return;
    Place at = place(i, channels, capacity, pixels);
    float v = 0.0f;
    if (at.row < (u32)rows[at.client])
        v = x[((size_t)(first[at.client] + at.row) * channels + at.channel) * pixels + at.pixel];
    value[i] = add ? value[i] + v : v;
}

// A value [K, C, R, S] into rows (N, C, S).
KERNEL(pack_rows, const float* value, const int* rows, const int* first, int lanes, int channels, int capacity,
       int pixels, float* out) {
    u32 i = element();
    if (i >= (u32)lanes * channels * capacity * pixels) return;
    Place at = place(i, channels, capacity, pixels);
    if (at.row < (u32)rows[at.client])
        out[((size_t)(first[at.client] + at.row) * channels + at.channel) * pixels + at.pixel] = value[i];
}

// Images by number, cropped and mirrored: bytes (n, C, H, W) into [K, C, R, H·W].
// ids [K, R]; cuts [K, R, 3]: rows and columns from the corner of the image with its border of `crop`, and the mirror;
// table (C, 256): a byte's normalised value. The border is 0: crops come after normalisation, as in `data::Loader`.
KERNEL(gather_images, const byte* images, const int* ids, const int* cuts, const float* table, const int* rows, int lanes,
       int channels, int capacity, int height, int width, int crop, float* value) {
    u32 i = element();
    if (i >= (u32)lanes * channels * capacity * height * width) return;
    Place at = place(i, channels, capacity, height * width);
    float v = 0.0f;
    if (at.row < (u32)rows[at.client]) {
        u32 sample = at.client * capacity + at.row;
        const int* cut = cuts + 3 * sample;
        int y = at.pixel / width, x = at.pixel % width;
        if (cut[2]) x = width - 1 - x;
        y += cut[0] - crop;
        x += cut[1] - crop;
        if (y >= 0 && y < height && x >= 0 && x < width) {
            size_t plane = (size_t)ids[sample] * channels + at.channel;
            v = table[256 * at.channel + images[(plane * height + y) * width + x]];
        }
    }
    value[i] = v;
}
