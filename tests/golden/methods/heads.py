"""FedLoGe and FedYoYo: several heads on one body, and a prior estimated from features."""

import torch
import torch.nn.functional as F

import toy
from toy import CLASSES, COHORTS, FEATURE, RATE, SALT, STEPS


def with_head(state, weight, bias):
    return state | {"classifier.weight": weight, "classifier.bias": bias}


def loge_local(w, local, x, y, sse, sse_bias):
    model = toy.build(w, train=True)
    own = [t.clone().requires_grad_() for t in local]
    for _ in range(STEPS):
        h = model(x)[1]["feature"]
        still = h.detach()
        loss = F.cross_entropy(h @ sse + sse_bias, y) + F.cross_entropy(model.classifier(still), y)
        loss = loss + F.cross_entropy(still @ own[0].T + own[1], y)
        params = list(model.parameters()) + own
        grads = torch.autograd.grad(loss, params)
        with torch.no_grad():
            for p, g in zip(params, grads):
                p -= RATE * g
    return toy.state_of(model), [t.detach() for t in own]


def fedloge():
    """Three heads on one feature h: the frozen SSE-C (M, b_s), the averaged global head, a kept local head.

    M = 0.5 noise(sse_c) as (16, 4), b_s = 0.1 noise(sse_c_bias); both given, frozen, never sent back.
    Loss: CE(h M + b_s, y) + CE(W_g sg(h) + b_g, y) + CE(W_l sg(h) + b_l, y), sg = no gradient; each mean over the
    batch; one SGD 0.1 step on everything at once (body by the first term only). The global head is the network's own
    `classifier`, part of `model`. A client's local head starts as the network's *initial* classifier (that of
    `start()`, not the one received) and is kept as it left training.
    Server: FedAvg by image counts of body, running statistics and global head.
    `deployed.sse-c`: classifier.weight = M^T, classifier.bias = b_s. `deployed.gla-fr`: rows of the global weight
    times 1.7 / |row|, bias unchanged. `kept/<client>/classifier.*`: the local head.
    """
    sse = 0.5 * toy.noise((FEATURE, CLASSES), SALT["sse_c"])
    sse_bias = 0.1 * toy.noise((CLASSES,), SALT["sse_c_bias"])
    w = toy.start()
    first = [w["classifier.weight"], w["classifier.bias"]]
    kept = {}
    for cohort in COHORTS:
        states = []
        for k in cohort:
            state, kept[k] = loge_local(w, kept.get(k, first), *toy.data(k), sse, sse_bias)
            states.append(state)
        w = toy.mean(states, [toy.size(k) for k in cohort])
    rows = w["classifier.weight"]
    real = 1.7 * rows / rows.norm(dim=1, keepdim=True)
    named = {k: {"classifier.weight": v[0], "classifier.bias": v[1]} for k, v in kept.items()}
    bias = w["classifier.bias"]
    deployed = {"deployed.sse-c": with_head(w, sse.T, sse_bias), "deployed.gla-fr": with_head(w, real, bias)}
    return {"model": w, "kept": named} | deployed


def effective(w, k):
    """Effective counts of one client, (classes): 1 / (mean pairwise cosine of centred features)."""
    x, y = toy.data(k)
    h = toy.forward(w, x)[1]
    eff = torch.zeros(CLASSES).to(h)
    for c in y.unique().tolist():
        d = h[y == c]
        if len(d) == 1:
            eff[c] = 1.0
            continue
        d = d - d.mean(0)
        length = d.norm(dim=1)
        pairs = length[:, None] * length[None, :]
        cosine = (d @ d.T) / torch.where(pairs == 0, torch.full_like(pairs, 1e-6), pairs)
        eff[c] = 1.0 / max(float(cosine.mean()), 1e-6)
    return eff


def merge(g, eff, first):
    """The server's running estimate after a round's sum of effective counts."""
    now = 1.0 + eff
    if first:
        wild = now > 1e4
        return torch.where(wild, now[~wild].mean(), now)
    now = 0.9 * g + 0.1 * now
    return torch.where((now - g).abs() / (g + 1e-8) > 100.0, g, now)


def yoyo_local(w, k, prior, weight, temperature, strong_view):
    x, y = toy.data(k)
    model = toy.build(w, train=True)
    local, n = toy.counts(k) / toy.size(k), len(y)
    for _ in range(STEPS):
        prior = 0.9 * prior + 0.1 * local
        z = model(torch.cat([x, strong_view(x)]))[0] + torch.log(prior**1.5 + 1e-9)
        weak, strong = z[:n].detach(), z[n:]
        right = weak.argmax(1) == y
        loss = F.cross_entropy(z, torch.cat([y, y]))
        if right.any():
            loss = loss + weight * toy.kl(F.softmax(weak[right] / temperature, 1), strong[right] / temperature)
        params = list(model.parameters())
        grads = torch.autograd.grad(loss, params)
        with torch.no_grad():
            for p, g in zip(params, grads):
                p -= RATE * g
    return toy.state_of(model)


def yoyo(strong_view):
    w, g, trace = toy.start(), None, {}
    for r, cohort in enumerate(COHORTS, 1):
        eff = sum(effective(w, k) for k in cohort)
        g = merge(g, eff, r == 1)
        prior = g / g.sum()
        trace |= {f"{r}/sum": eff, f"{r}/estimate": g}
        weight = 4.0 * min(r / 50, 1.0)
        states = [yoyo_local(w, k, prior, weight, 1.5, strong_view) for k in cohort]
        w = toy.mean(states, [toy.size(k) for k in cohort])
    return {"model": w, "state": {"estimate": g, "prior": g / g.sum()}, "trace": trace}


def fedyoyo():
    """Two exchanges a round with one cohort; both views plain (identical images), yet one forward of 2B images.

    Exchange 1, received model in eval mode, one batch: for every class with n >= 2 images, centred features d_i (the
    client's class mean), c = mean over all n^2 pairs, the diagonal too, of cos(d_i, d_j) (a zero product of lengths
    is replaced by 1e-6), eff_c = 1 / max(c, 1e-6); n = 1: eff_c = 1; absent: 0. As centred directions often cancel
    (n = 2: always) 1e6 is a common value.
    Server: s = 1 + sum over the cohort of eff. Round 1: entries > 1e4 become the mean of the others, g = s.
    Later: s' = 0.9 g + 0.1 s; entries with |s' - g| / (g + 1e-8) > 100 stay at g; g = s'. Prior pi = g / sum g.
    Exchange 2: pi_0 = pi at the start of each client's round; at every step, before the forward,
    pi <- 0.9 pi + 0.1 n_kc / n_k. z += log(pi^1.5 + 1e-9) on all 2B rows (first B weak, then B strong). Loss: mean
    CE over 2B rows + lambda min(r / 50, 1) KL, r from 1, lambda 4; KL = mean over the rows right in the weak view
    (argmax of the *adjusted* z = y) of KL(softmax(z_weak / 1.5) || softmax(z_strong / 1.5)), weak without gradient,
    no T^2; no such row: 0. With identical views KL is 0 and so is its gradient; batch statistics are those of 2B rows
    (the running variance's unbiased factor differs from B's).
    FedAvg by image counts. `state/estimate` = g; `trace/<round>/sum` = sum of eff, `trace/<round>/estimate` = g.
    """
    return yoyo(lambda x: x)


def fedyoyo_flipped():
    """FedYoYo whose strong view is the weak one mirrored left to right, so that KL has a gradient. (Optional.)"""
    return yoyo(lambda x: x.flip(3))
