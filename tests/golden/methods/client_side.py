"""Methods that change the client's loss, all with FedAvg by image counts. z logits, h feature, y labels."""

import math

import torch
import torch.nn.functional as F

import toy
from toy import CLASSES, COHORTS


def averaged(local):
    """Rounds of `local(w, k) -> state` and FedAvg by image counts."""
    w = toy.start()
    for cohort in COHORTS:
        w = toy.mean([local(w, k) for k in cohort], [toy.size(k) for k in cohort])
    return {"model": w}


def by_loss(make):
    """`make(k)` gives client k's `loss(z, y)`."""

    def local(w, k):
        loss = make(k)
        return toy.train(w, *toy.data(k), lambda z, y, h, m: loss(z, y))[0]

    return averaged(local)


def fedavg():
    """Cross-entropy; FedAvg by image counts."""
    return averaged(lambda w, k: toy.train(w, *toy.data(k))[0])


def fedprox(mu=0.5):
    """+ (mu / 2) |theta - w|^2, mu 0.5, over trainable tensors alone, w as received: gradient + mu (theta - w)."""
    local = lambda w, k: toy.train(w, *toy.data(k), correct=lambda n, p: mu * (p - w[n]))[0]  # noqa: E731
    return averaged(local)


def moon(mu=1.0):
    """CE + mu mean_i -log(e^(s_g / tau) / (e^(s_g / tau) + e^(s_p / tau))), mu 1, tau 0.5.

    s_g = cos(h_i, h_i of the received model), s_p = cos(h_i, h_i of the client's previous model); cosine = dot /
    (product of norms, each at least 1e-8); h is the feature itself (no projection head). The training model in train
    mode, both frozen ones in eval mode, on the same images. Kept: the whole local state (running statistics too) as
    it left the last training. A client that kept nothing uses the received model for both (then the term's gradient
    is zero at the first step, and at the second too, since s_g = s_p). `kept/<client>/<tensor>`.
    """
    w, kept = toy.start(), {}
    for cohort in COHORTS:
        states = []
        for k in cohort:
            x, y = toy.data(k)
            near, far = toy.forward(w, x)[1], toy.forward(kept.get(k, w), x)[1]

            def loss(z, y, h, m):
                s = torch.stack([F.cosine_similarity(h, near), F.cosine_similarity(h, far)], 1) / 0.5
                return F.cross_entropy(z, y) + mu * F.cross_entropy(s, torch.zeros_like(y))

            kept[k] = toy.train(w, x, y, loss)[0]
            states.append(kept[k])
        w = toy.mean(states, [toy.size(k) for k in cohort])
    return {"model": w, "kept": kept}


def focal(gamma=2.0):
    """mean_i -(1 - p_y)^gamma log p_y, gamma 2, alpha 1; p = softmax(z), the factor differentiated too."""

    def loss(z, y):
        log = F.log_softmax(z, 1).gather(1, y[:, None])[:, 0]
        return (-((1 - log.exp()) ** gamma) * log).mean()

    return by_loss(lambda k: loss)


def class_ratios(w):
    """1 + 0.1 R_c of the model w, (classes): see `ratio_loss`."""
    x, y = toy.server_set()
    updates = []
    for c in range(CLASSES):
        after = toy.train(w, x[y == c], y[y == c], steps=1)[0]
        updates.append(after["classifier.weight"] - w["classifier.weight"])
    d = torch.stack(updates)
    top, who = d.max(0)
    lone = ((d.abs() / top.abs() > 0.80).sum(0) < 2) & (top != 0)
    ratios = []
    for c in range(CLASSES):
        at = lone & (who == c)
        own, others = d[c][at].sum(), (d.sum(0) - d[c])[at].sum() / (CLASSES - 1)
        ratios.append(min(float(own.abs() / others.abs()), 5000.0) if others != 0 else 10.0)
    return 1.0 + 0.1 * torch.tensor(ratios).to(toy.DTYPE)


def ratio(previous):
    w, weights, trace = toy.start(), torch.ones(CLASSES).to(toy.DTYPE), {}
    for r, cohort in enumerate(COHORTS, 1):
        found = class_ratios(w)
        weights = weights if previous else found
        loss = lambda z, y, h, m: (weights[y] * F.cross_entropy(z, y, reduction="none")).mean()  # noqa: E731
        states = [toy.train(w, *toy.data(k), loss)[0] for k in cohort]
        trace[f"{r}/weights"] = weights
        w = toy.mean(states, [toy.size(k) for k in cohort])
        weights = found
    return {"model": w, "state": {"weights": found}, "trace": trace}


def ratio_loss():
    """mean_i (1 + 0.1 R_y) CE_i, a plain mean over the batch; R from the model sent in the *previous* round.

    Round 1: all weights 1 (plain CE). Round r > 1: R of the model that was sent in round r - 1, as in the reference
    code. R of a model w: for every class c a copy of w trains on the server set's images of c alone (2 images), one
    full-batch step of SGD 0.1 of plain CE, batch norm in train mode; d_c = change of classifier.weight (4 x 16, the
    bias left out). An entry (i, j) of that matrix, any row i, belongs to c if d_c[i, j] is the largest over classes
    (signed; the first of equals), is not 0, and no other class has |d[i, j]| > 0.80 |d_c[i, j]|. Over c's entries:
    R_c = |sum d_c| / |sum of the plain mean of the other three classes' d|; denominator 0 (no entries): 10; at most
    5000.
    `trace/<round>/weights`: 1 + 0.1 R in use in that round; `state/weights`: those for the round after the last.
    """
    return ratio(True)


def ratio_loss_current():
    """As ratio-loss, but R in every round, the first too, is that of the model sent in this round."""
    return ratio(False)


def fedir():
    """mean_i (p(y_i) / q_k(y_i)) CE_i, a plain mean over the batch (not divided by the weights' sum).

    p = share of a class over the images of all six clients (20, 12, 6, 2 of 40), q_k = its share at the client.
    """
    total = sum(toy.counts(k) for k in range(len(toy.CLIENTS)))

    def make(k):
        q = toy.counts(k) / toy.size(k)
        weights = torch.where(q > 0, total / total.sum() / q, 0.0)
        return lambda z, y: (weights[y] * F.cross_entropy(z, y, reduction="none")).mean()

    return by_loss(make)


def balance(entropy):
    def local(w, k):
        x, y = toy.data(k)
        present = toy.counts(k) > 0
        at = torch.cumsum(present, 0) - 1
        soft = F.softmax(toy.forward(w, x)[0][:, ~present] / 2.0, 1)

        def loss(z, y, h, m):
            mine = z[:, present]
            total = F.cross_entropy(mine, at[y])
            if not present.all():
                total = total - (soft * F.log_softmax(z[:, ~present] / 2.0, 1)).sum(1).mean()
            rows = -(F.softmax(mine, 1) * F.log_softmax(mine, 1)).sum(1)
            return total - 0.002 * (rows.sum() if entropy == "sum" else rows.mean())

        return toy.train(w, x, y, loss)[0]

    return averaged(local)


def balancefl():
    """L = CE over present classes + KD over absent classes - 0.002 H; full batch, no sampler, no feature noise.

    Present = classes of the client's data. CE: softmax over the present classes' logits alone, mean over the batch.
    KD, lambda 1, T 2: mean_i -sum_{c absent} softmax(t / 2)_c log softmax(z / 2)_c, both over the absent classes'
    logits alone, t = the received model's logits on the same images, in eval mode; cross-entropy form, no T^2; no
    absent class: 0 (one absent class: 0 too). H = entropy of the softmax over present logits, *summed* over the
    batch's rows, as in the reference code (balancefl-mean: its mean).
    """
    return balance("sum")


def balancefl_mean():
    """As balancefl, with the mean over rows of the entropy."""
    return balance("mean")


def logit_adjustment_local():
    """CE(z + log max(n_kc, 1), y), tau 1: the client's own counts; an absent class counts as one image (offset 0)."""
    return by_loss(lambda k: lambda z, y: F.cross_entropy(z + toy.counts(k).clamp(min=1).log(), y))


def logit_adjustment_global():
    """CE(z + log n_c, y), tau 1: counts of all six clients (20, 12, 6, 2)."""
    total = sum(toy.counts(k) for k in range(len(toy.CLIENTS)))
    return by_loss(lambda k: lambda z, y: F.cross_entropy(z + total.log(), y))


def fedlc():
    """CE(z - tau n_kc^(-1/4), y), tau 1, the client's own counts; an absent class has n = 1e-8, so penalty 100."""

    def make(k):
        penalty = torch.where(toy.counts(k) > 0, toy.counts(k), 1e-8) ** -0.25
        assert math.isclose(float(penalty.max()), 100.0, rel_tol=1e-6) or toy.counts(k).all()
        return lambda z, y: F.cross_entropy(z - penalty, y)

    return by_loss(make)
