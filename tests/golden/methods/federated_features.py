"""CReFF and CLIP2FL: federated features whose classifier gradients match the clients', and a head trained on them."""

import torch
import torch.nn.functional as F

import toy
from toy import CLASSES, COHORTS, FEATURE, SALT

PER_CLASS, MATCH, MATCH_RATE, RETRAIN, RETRAIN_RATE = 5, 3, 0.1, 4, 0.01
SYN_LABELS = torch.arange(CLASSES).repeat_interleave(PER_CLASS)


def head_gradient(head, features, c, keep=False):
    """Gradients of mean CE(W h + b, c) with respect to W, (classes, features), and b, (classes)."""
    w, b = (t.detach().requires_grad_() for t in head)
    loss = F.cross_entropy(features @ w.T + b, torch.full((len(features),), c))
    return torch.autograd.grad(loss, [w, b], create_graph=keep)


def class_gradients(body, head, cohort):
    """Class -> the plain mean over the cohort's owners of that class (no weights), of each owner's gradient."""
    found = {}
    for k in cohort:
        x, y = toy.data(k)
        feature = toy.forward(body, x)[1]
        for c in y.unique().tolist():
            found.setdefault(c, []).append(head_gradient(head, feature[y == c], c))
    return {c: [torch.stack(g).mean(0) for g in zip(*found[c])] for c in sorted(found)}


def distance(made, real):
    total = 0.0
    for a, b in zip(made, real):
        a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
        total = total + (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum()
    return total


def contrast(features, texts, tau):
    """Supervised contrast of every feature with the texts of all others, as a sum over pairs (N x N)."""
    s = features @ texts[SYN_LABELS].T / tau
    apart = ~torch.eye(len(s), dtype=torch.bool)
    norm = torch.logsumexp(s.masked_fill(~apart, float("-inf")), 1, keepdim=True)
    own = apart & (SYN_LABELS[:, None] == SYN_LABELS[None, :])
    return (((norm - s) * own).sum(1) / own.sum(1)).mean()


def match(features, head, real, extra):
    features = features.clone().requires_grad_()
    for _ in range(MATCH):
        loss = extra(features)
        for c, g in real.items():
            made = head_gradient(head, features[c * PER_CLASS : (c + 1) * PER_CLASS], c, keep=True)
            loss = loss + distance(made, g)
        (slope,) = torch.autograd.grad(loss, features)
        features = (features - MATCH_RATE * slope).detach().requires_grad_()
    return features.detach()


def retrain(features):
    w, b = (t.requires_grad_() for t in toy.head(SALT["fresh_head"]))
    for _ in range(RETRAIN):
        loss = F.cross_entropy(features @ w.T + b, SYN_LABELS)
        slopes = torch.autograd.grad(loss, [w, b])
        w, b = ((p - RETRAIN_RATE * g).detach().requires_grad_() for p, g in zip((w, b), slopes))
    return w.detach(), b.detach()


def rounds(local, extra):
    w, features = toy.start(), toy.noise((CLASSES * PER_CLASS, FEATURE), SALT["features"])
    head, trace = toy.head(SALT["first_head"]), {}
    for r, cohort in enumerate(COHORTS, 1):
        real = class_gradients(w, head, cohort)
        w = toy.mean([local(w, k) for k in cohort], [toy.size(k) for k in cohort])
        features = match(features, head, real, extra)
        head = retrain(features)
        trace |= {f"{r}/features": features, f"{r}/head.weight": head[0], f"{r}/head.bias": head[1]}
        for c, g in real.items():
            trace |= {f"{r}/gradient/{c}/weight": g[0], f"{r}/gradient/{c}/bias": g[1]}
    named = {"classifier.weight": head[0], "classifier.bias": head[1]}
    return {"model": w, "deployed": w | named, "state": {"features": features} | named, "trace": trace}


def creff():
    """A round, from the global model w and the head phi of the round before (round 1: `head(first_head)`, hashed).

    1. Gradients. A client of the cohort, for each class c it owns: h = features of *all* its images of c by the
       received body w in eval mode, no augmentation, one repeat; gradient of mean CE(phi(h), c) with respect to
       phi's weight and bias. The server takes the plain mean over the owners in the cohort (not by counts), g_c.
    2. Training. The same clients train from plain w (its own FedAvg classifier) with CE; FedAvg by image counts.
    3. Matching. 5 features a class, class after class, (20, 16), start noise(features), kept over the rounds. 3
       steps of SGD 0.1 of sum over classes present in the cohort of D(gradient of mean CE(phi(F_c), c), g_c), with
       the same phi as in 1; D = sum over W's rows of 1 - <G, G'> / (|G| |G'| + 1e-6), plus one such term for the
       whole bias. A class that nobody in the cohort owns (class 3 in round 4) adds nothing, so its features stay.
    4. Head. From `head(fresh_head)`, the same in every round: 4 full-batch steps of SGD 0.01 of mean CE over the 20
       features. It is phi of the next round's step 1 and 3.
    `model` is the FedAvg model, never touched by the head; `deployed` is its body with the last phi.
    `trace/<round>/` (from 1): features and head after the round, g_c of the round.
    """
    return rounds(lambda w, k: toy.train(w, *toy.data(k))[0], lambda f: 0.0)


def clip2fl():
    """CReFF with two additions; class gradients are of CE alone, and there is no MLP before the classifier.

    Client loss: CE + alpha T^2 mean_i KL(softmax(t_i / T) || softmax(z_i / T)), T = 3, alpha = 1; t = the teacher
    table's logits, 5 noise(teacher) as (40, 4), row = image id (a table of q = softmax(t) gives the same softmax(t /
    T) as q^(1/T) normalised).
    Matching loss: + 0.001 PCL, over the features of all classes, present or not: s_ij = F_i . t_{y_j} / 0.1, F not
    normalised, t = noise(texts) (4, 16) with unit rows; PCL = mean_i mean_{j != i, y_j = y_i}
    -(s_ij - log sum_{k != i} exp s_ik).
    """
    table, texts = toy.teacher_logits(), toy.texts()

    def local(w, k):
        soft = F.softmax(table[toy.CLIENTS[k]] / 3.0, 1)
        loss = lambda z, y, h, m: F.cross_entropy(z, y) + 9.0 * toy.kl(soft, z / 3.0)  # noqa: E731
        return toy.train(w, *toy.data(k), loss)[0]

    return rounds(local, lambda f: 0.001 * contrast(f, texts, 0.1))
