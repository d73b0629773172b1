"""Methods that change the aggregation, or correct the client's gradient by a kept state."""

import torch

import toy
from toy import COHORTS, RATE


def trained(w, cohort, **extra):
    return [toy.train(w, *toy.data(k), **extra)[0] for k in cohort], [toy.size(k) for k in cohort]


def scaffold(server_rate=1.0):
    """SCAFFOLD, option II. Variates c and c_k over trainable tensors, all zero at first; c_k kept by the client.

    Step: g + c - c_k. After K = 2 steps: c_k' = c_k - c + (w - w_k) / (K 0.1). Server, with *uniform* means over the
    cohort S of the six clients N: w += server_rate mean(w_k - w), c += (|S| / 6) mean(c_k' - c_k); running
    statistics: their uniform mean. server_rate 1. `state/c/<tensor>`, `kept/<client>/<tensor>`.
    """
    w = toy.start()
    c, kept = toy.zeros(w), {k: toy.zeros(w) for k in range(len(toy.CLIENTS))}
    for cohort in COHORTS:
        states, moves = [], []
        for k in cohort:
            x, y = toy.data(k)
            own = kept[k]
            state, taken = toy.train(w, x, y, correct=lambda n, p: c[n] - own[n])
            kept[k] = {n: own[n] - c[n] + (w[n] - state[n]) / (taken * RATE) for n in c}
            moves.append({n: kept[k][n] - own[n] for n in c})
            states.append(state)
        mean, move = toy.mean(states, [1] * len(cohort)), toy.mean(moves, [1] * len(cohort))
        w = mean | {n: w[n] + server_rate * (mean[n] - w[n]) for n in c}
        c = {n: c[n] + len(cohort) / len(toy.CLIENTS) * move[n] for n in c}
    return {"model": w, "state": {f"c/{n}": t for n, t in c.items()}, "kept": kept}


def momentum(ema, beta=0.9):
    w = toy.start()
    v = toy.zeros(w)
    for cohort in COHORTS:
        mean = toy.mean(*trained(w, cohort))
        v = {n: beta * v[n] + (1 - beta if ema else 1.0) * (w[n] - mean[n]) for n in v}
        w = mean | {n: w[n] - v[n] for n in v}
    return {"model": w, "state": {f"v/{n}": t for n, t in v.items()}}


def fedavgm():
    """v <- 0.9 v + (w - mean), w <- w - v over trainable tensors, v = 0 at first, server rate 1; mean by image
    counts; running statistics from the mean. `state/v/<tensor>`."""
    return momentum(False)


def fedavgm_ema():
    """As fedavgm, with v <- 0.9 v + 0.1 (w - mean)."""
    return momentum(True)


def adaptive(rule, eta=0.1, b1=0.9, b2=0.99, tau=1e-3):
    w = toy.start()
    m, v = toy.zeros(w), {n: torch.full_like(t, tau**2) for n, t in toy.zeros(w).items()}
    for cohort in COHORTS:
        mean = toy.mean(*trained(w, cohort))
        for n in m:
            delta = mean[n] - w[n]
            square = delta * delta
            m[n] = b1 * m[n] + (1 - b1) * delta
            if rule == "adagrad":
                v[n] = v[n] + square
            elif rule == "adam":
                v[n] = b2 * v[n] + (1 - b2) * square
            else:
                v[n] = v[n] - (1 - b2) * square * torch.sign(v[n] - square)
        w = mean | {n: w[n] + eta * m[n] / (v[n].sqrt() + tau) for n in m}
    return {"model": w, "state": {f"m/{n}": t for n, t in m.items()} | {f"v/{n}": t for n, t in v.items()}}


def fedadam():
    """Reddi et al. 2021, Algorithm 2. Delta = mean by image counts of w_k - w, over trainable tensors.

    m <- 0.9 m + 0.1 Delta (m = 0 at first); v <- 0.99 v + 0.01 Delta^2 (v = tau^2 at first); then
    w <- w + 0.1 m / (sqrt(v) + tau), tau 1e-3; no bias correction. Running statistics: those of the mean.
    `state/m/<tensor>`, `state/v/<tensor>`.
    """
    return adaptive("adam")


def fedyogi():
    """As fedadam, v <- v - 0.01 Delta^2 sign(v - Delta^2)."""
    return adaptive("yogi")


def fedadagrad():
    """As fedadam (m with 0.9 too), v <- v + Delta^2."""
    return adaptive("adagrad")


def fednova():
    """Unequal step counts: two epochs in batches of 4 in the stored order, unshuffled, the last batch short.

    Steps tau_k: client 0: 2; clients 1 to 4: 4; client 5: 6. d_k = (w - w_k) / tau_k, p_k = n_k / sum n over the
    cohort; w <- w - (sum p_k tau_k) sum p_k d_k over trainable tensors; running statistics: mean by p_k.
    """
    w = toy.start()
    for cohort in COHORTS:
        runs = [toy.train(w, *toy.data(k), batch=4) for k in cohort]
        p = [toy.size(k) / sum(toy.size(j) for j in cohort) for k in cohort]
        mean = toy.mean([s for s, _ in runs], p)
        steps = sum(q * t for q, (_, t) in zip(p, runs))
        w = mean | {
            n: w[n] - steps * sum(q / t * (w[n] - s[n]) for q, (s, t) in zip(p, runs)) for n in toy.zeros(w)
        }
    return {"model": w}


def feddyn(alpha=0.1):
    """Acar et al. 2021: client min L(theta) - <g_k, theta> + (alpha / 2) |theta - w|^2, alpha 0.1, trainable tensors.

    Step: gradient - g_k + alpha (theta - w), SGD 0.1, two steps; then g_k <- g_k - alpha (w_k - w), kept, zero at
    first. Server over all 6 clients: h <- h - (alpha / 6) sum_{k in cohort} (w_k - w), zero at first;
    w <- (uniform mean of w_k over the cohort) - h / alpha. Running statistics: the *uniform* mean of the cohort's.
    `state/h/<tensor>`, `kept/<client>/<tensor>` = g_k.
    """
    w = toy.start()
    h, kept = toy.zeros(w), {k: toy.zeros(w) for k in range(len(toy.CLIENTS))}
    for cohort in COHORTS:
        states = []
        for k in cohort:
            x, y = toy.data(k)
            own = kept[k]
            state, _ = toy.train(w, x, y, correct=lambda n, p: alpha * (p - w[n]) - own[n])
            kept[k] = {n: own[n] - alpha * (state[n] - w[n]) for n in own}
            states.append(state)
        h = {n: h[n] - alpha / len(toy.CLIENTS) * sum(s[n] - w[n] for s in states) for n in h}
        mean = toy.mean(states, [1] * len(cohort))
        w = mean | {n: mean[n] - h[n] / alpha for n in h}
    return {"model": w, "state": {f"h/{n}": t for n, t in h.items()}, "kept": kept}
