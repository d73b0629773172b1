"""What the published 260-thousand-parameter Llama (stories260K.bin, llama2.c format) writes greedily.

    python make.py FOLDER        # holds stories260K.bin and tok512.bin

An independent forward pass in numpy, float64, in llama2.c's own conventions (interleaved rotary pairs, no cache), and
its tokenizer (greedy merges by score). Writes expected.json: prompt, ids of the prompt with BOS, 200 greedy tokens,
the smallest gap between the best and the second score on the way, the text (marks left out). The test compares tokens exactly.
"""

import json
import pathlib
import struct
import sys

import numpy as np

HERE = pathlib.Path(__file__).parent
folder = pathlib.Path(sys.argv[1])
raw = (folder / "stories260K.bin").read_bytes()
dim, hidden, layers, heads, kv_heads, vocab, context = struct.unpack("7i", raw[:28])
assert vocab > 0, "shared classifier"
w = np.frombuffer(raw, np.float32, offset=28).astype(np.float64)
at = 0


def take(*shape):
    global at
    n = int(np.prod(shape))
    at += n
    return w[at - n:at].reshape(shape)


hd = dim // heads
kv = kv_heads * hd
E = take(vocab, dim)
att_norm, Q, K, V, O = take(layers, dim), take(layers, dim, dim), take(layers, kv, dim), take(layers, kv, dim), take(layers, dim, dim)
ffn_norm, W1, W2, W3, final = take(layers, dim), take(layers, hidden, dim), take(layers, dim, hidden), take(layers, hidden, dim), take(dim)


def norm(x, g):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * g


def rope(x):  # (T, h, hd), pairs (2i, 2i+1)
    t = np.arange(x.shape[0])[:, None] * 10000.0 ** (-np.arange(0, hd, 2) / hd)
    c, s = np.cos(t)[:, None], np.sin(t)[:, None]
    a, b = x[..., ::2], x[..., 1::2]
    return np.stack([a * c - b * s, a * s + b * c], -1).reshape(x.shape)


def last_logits(ids):
    x = E[ids]
    T = len(ids)
    causal = np.triu(np.full((T, T), -np.inf), 1)
    for l in range(layers):
        h = norm(x, att_norm[l])
        q = rope((h @ Q[l].T).reshape(T, heads, hd))
        k = rope((h @ K[l].T).reshape(T, kv_heads, hd)).repeat(heads // kv_heads, 1)
        v = (h @ V[l].T).reshape(T, kv_heads, hd).repeat(heads // kv_heads, 1)
        s = np.einsum("thd,shd->hts", q, k) / np.sqrt(hd) + causal
        p = np.exp(s - s.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        x = x + np.einsum("hts,shd->thd", p, v).reshape(T, dim) @ O[l].T
        h = norm(x, ffn_norm[l])
        a = h @ W1[l].T
        x = x + (a / (1 + np.exp(-a)) * (h @ W3[l].T)) @ W2[l].T
    return norm(x[-1], final) @ E.T


tok = (folder / "tok512.bin").read_bytes()
pieces, scores, p = [], [], 4
for _ in range(vocab):
    score, n = struct.unpack("fi", tok[p:p + 8])
    pieces.append(tok[p + 8:p + 8 + n])
    scores.append(score)
    p += 8 + n


def encode(text):
    ids = [pieces.index(b" ")] + [pieces.index(c.encode()) for c in text]
    while True:
        best = max(((scores[pieces.index(pieces[a] + pieces[b])], -i) for i, (a, b) in enumerate(zip(ids, ids[1:]))
                    if pieces[a] + pieces[b] in pieces), default=None)
        if best is None:
            return [1] + ids
        i = -best[1]
        ids[i:i + 2] = [pieces.index(pieces[ids[i]] + pieces[ids[i + 1]])]


prompt = "One day, Lily met a big"
ids, gap = encode(prompt), np.inf
first = len(ids)
for _ in range(200):
    z = last_logits(ids)
    order = np.sort(z)
    gap = min(gap, order[-1] - order[-2])
    ids.append(int(z.argmax()))
text = b"".join(b"" if i < 3 else bytes([i - 3]) if i < 259 else pieces[i] for i in ids).decode()[1:]
out = dict(prompt=prompt, ids=ids[:first], tokens=ids[first:], smallest_gap=float(gap), text=text)
(HERE / "expected.json").write_text(json.dumps(out, indent=1) + "\n")
print(text, gap)
