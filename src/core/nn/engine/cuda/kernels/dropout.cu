// Dropout with the masks that every interpreter draws (`nn::dropout`): Philox4x32-10 by key, row and place in the sample.

struct Words {
    u32 w[4];
};

DEVICE Words philox(Words c, u32 k0, u32 k1) {
    for (int round = 0; round < 10; round++) {
        if (round > 0) k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
        u64 a = (u64)c.w[0] * 0xD2511F53u, b = (u64)c.w[2] * 0xCD9E8D57u;
        Words next;
        next.w[0] = (u32)(b >> 32) ^ c.w[1] ^ k0;
        next.w[1] = (u32)b;
        next.w[2] = (u32)(a >> 32) ^ c.w[3] ^ k1;
        next.w[3] = (u32)a;
        c = next;
    }
    return c;
}

// `Key::fold`: the child of key (hi, lo), low words first, for a purpose and a number.
DEVICE Words fold(Words key, u32 purpose, u64 number) {
    u64 hi = ((u64)key.w[1] << 32 | key.w[0]) ^ (u64)purpose * 0x9E3779B97F4A7C15ull;
    Words counter = {{key.w[2], key.w[3], (u32)number, (u32)(number >> 32)}};
    return philox(counter, (u32)hi, (u32)(hi >> 32));
}

// `out = mask(x)`, written or added: forward, and backward on the gradient. keys [K, 4] are the clients' keys at this
// operation. An element falls where its draw is at most `last`. One thread for four elements of a row.
KERNEL(dropout, const float* x, const u32* keys, const int* rows, int lanes, int channels, int capacity, int pixels,
       int purpose, u32 last, float kept, int add, float* out) {
    u32 i = element(), sample = channels * pixels, quads = (sample + 3) / 4;
    if (i >= (u32)lanes * quads * capacity) return;
    u32 row = i % capacity, quad = i / capacity % quads, client = i / capacity / quads;
    Words key;
    for (int w = 0; w < 4; w++) key.w[w] = keys[4 * client + w];
    key = fold(key, purpose, row);
    Words counter = {{key.w[2], key.w[3], quad, 0}};
    Words draws = philox(counter, key.w[0], key.w[1]);
    bool real = row < (u32)rows[client];
    for (u32 w = 0; w < 4 && 4 * quad + w < sample; w++) {
        u32 channel = (4 * quad + w) / pixels, pixel = (4 * quad + w) % pixels;
        size_t at = ((size_t)(client * channels + channel) * capacity + row) * pixels + pixel;
        float v = real ? x[at] * (draws.w[w] <= last ? 0.0f : kept) : 0.0f;
        out[at] = add ? out[at] + v : v;
    }
}
