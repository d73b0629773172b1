"""Servers with data of their own: FEDIC, FedDF, FedBE, and CCVR's moments."""

import torch
import torch.nn.functional as F

import toy
from toy import CLASSES, COHORTS, FEATURE, SALT, Adam


def cohort_states(w, cohort):
    return [toy.train(w, *toy.data(k))[0] for k in cohort], [toy.size(k) for k in cohort]


def descend(model, loss, optimiser, steps):
    """`steps` steps of `optimiser` on all weights of `model`; `loss(model)`."""
    for _ in range(steps):
        params = dict(model.named_parameters())
        optimiser.step(params, torch.autograd.grad(loss(model), list(params.values())))


def gate_start():
    """v, b, gamma, beta as written; w, the feature gate, by hash."""
    gate = {"ensemble_scale": torch.ones(CLASSES), "ensemble_bias": torch.zeros(1)}
    gate |= {"logit_scale": torch.ones(CLASSES), "logit_bias": torch.zeros(CLASSES)}
    gate = {n: t.to(toy.DTYPE) for n, t in gate.items()}
    gate["carry.weight"] = toy.value("carry.weight", (1, FEATURE), SALT["gate"])
    gate["carry.bias"] = toy.value("carry.bias", (1,), SALT["gate"] + 1)
    return {n: t.requires_grad_() for n, t in gate.items()}


def gated(gate, states, x, calibrated):
    """Logits of the gated ensemble, (batch, classes)."""
    pairs = [toy.forward(s, x) for s in states]
    z, h = torch.stack([p[0] for p in pairs]), torch.stack([p[1] for p in pairs]).mean(0)
    a = torch.sigmoid(z @ gate["ensemble_scale"] + gate["ensemble_bias"])
    mixed = ((a / a.sum(0))[:, :, None] * z).sum(0) * gate["logit_scale"] + gate["logit_bias"]
    carry = torch.sigmoid(h @ gate["carry.weight"].T + gate["carry.bias"])
    return carry * mixed + (1 - carry) * calibrated


def fedic():
    """Clients train with CE from the last student; then three stages on the server, 3 full-batch steps each.

    Server set: 8 images, labels n % 4; pool: 12 images. Three optimisers, one a stage, plain Adam 1e-3 (0.9, 0.999,
    eps 1e-8), L2 decay 2e-4 added to the gradient of every weight (batch norm's and biases too) in (a) and (c), none
    in (b); moments and step counts persist over the rounds, weights of (a) and (c) are reset to the FedAvg model w.
    (a) copy of w, batch norm in train mode (running statistics move), CE on the server set. Then frozen, eval mode:
        z_c.
    (b) gate, clients in eval mode: a_k = sigmoid(v . z_k + b), over images and clients of the cohort, divided by the
        sum over clients; zhat = gamma * sum_k a_k z_k + beta; G = sigmoid(w . mean_k h_k + b_w), plain mean;
        out = G zhat + (1 - G) z_c; CE on the server set. Start: v = 1 (4), b = 0, gamma = 1, beta = 0,
        w = value("carry.weight", (1, 16), gate), b_w = value("carry.bias", (1), gate + 1). Kept over the rounds.
    (c) student from w, batch norm in train mode: forward of the pool, then forward of the server set (running
        statistics move twice, in this order); 0.5 KL(softmax(out / 2) || softmax(z / 2)) mean over the pool, no T^2,
        + 0.5 CE on the server set. `out` as in (b) with the trained gate, no gradient.
    The student is the global model: judged, and sent in the next round.
    `state/`: the gate; `state/{calibrate,gate,student}/{m,v}/<tensor>`, `/steps`: the optimisers.
    `trace/<round>/fedavg.head`: classifier.weight of w; `trace/<round>/logits`: `out` on the pool after (b).
    """
    w, gate, trace = toy.start(), gate_start(), {}
    x, y = toy.server_set()
    pool = toy.pool()
    calibrate, opt_gate, opt_student = Adam(decay=2e-4), Adam(), Adam(decay=2e-4)
    for r, cohort in enumerate(COHORTS, 1):
        states, sizes = cohort_states(w, cohort)
        average = toy.mean(states, sizes)
        copy = toy.build(average, train=True)
        descend(copy, lambda m: F.cross_entropy(m(x)[0], y), calibrate, 3)
        copy = toy.state_of(copy)
        for _ in range(3):
            loss = F.cross_entropy(gated(gate, states, x, toy.forward(copy, x)[0]), y)
            opt_gate.step(gate, torch.autograd.grad(loss, list(gate.values())))
        teacher = gated(gate, states, pool, toy.forward(copy, pool)[0]).detach()
        student = toy.build(average, train=True)

        def both(m):
            soft = toy.kl(F.softmax(teacher / 2.0, 1), m(pool)[0] / 2.0)
            return 0.5 * soft + 0.5 * F.cross_entropy(m(x)[0], y)

        descend(student, both, opt_student, 3)
        w = toy.state_of(student)
        trace |= {f"{r}/fedavg.head": average["classifier.weight"], f"{r}/logits": teacher}
    state = {n: t.detach() for n, t in gate.items()}
    for name, opt in [("calibrate", calibrate), ("gate", opt_gate), ("student", opt_student)]:
        state |= opt.named(name)
    return {"model": w, "state": state, "trace": trace}


def feddf(frozen):
    w, trace = toy.start(), {}
    pool = toy.pool()
    for r, cohort in enumerate(COHORTS, 1):
        states, sizes = cohort_states(w, cohort)
        soft = F.softmax(torch.stack([toy.forward(s, pool)[0] for s in states]).mean(0), 1)
        student = toy.build(toy.mean(states, sizes), train=not frozen)
        descend(student, lambda m: toy.kl(soft, m(pool)[0]), Adam(), 5)
        w = toy.state_of(student)
        trace[f"{r}/teacher"] = soft
    return {"model": w, "trace": trace}


def feddf_frozen():
    """FedAvg by image counts, then distillation into it; the student is the next round's global model.

    Teacher: softmax of the plain mean of the cohort's logits on the 12 pool images, clients in eval mode. Loss: mean
    KL(teacher || softmax(student)), T = 1. Five full-batch steps of plain Adam 1e-3 (0.9, 0.999, eps 1e-8, no
    decay, rate constant), fresh each round, on all weights. The student's batch norm is in eval mode: running
    statistics of the FedAvg model, unchanged; its scale and shift train. `trace/<round>/teacher`: the teacher's
    probabilities.
    """
    return feddf(True)


def feddf_batch():
    """As feddf-frozen, but the student's batch norm in train mode: the pool's batch statistics, running ones move."""
    return feddf(False)


def fedbe():
    """A diagonal Gaussian over the cohort's weights, three draws, an ensemble of 7, distillation, plain SWA.

    p_k = n_k / sum n. Mean mu = sum p_k w_k (the FedAvg model), variance = sum p_k (w_k - mu)^2, entry by entry.
    Draw j (0, 1, 2): mu + sqrt(variance) eps_j for the trainable tensors, running statistics of mu as they are;
    eps_j of tensor i (index in the state's order) = noise(numel, eps + 100 j + i), the same in every round, stored
    under `eps/<j>/<tensor>`. Teacher: plain mean of the softmax of 3 draws, 3 clients and mu on the pool, all in
    eval mode. Student: from mu, batch norm in eval mode (running statistics of mu, unchanged), all weights, five
    full-batch steps of SGD 0.05 of mean KL(teacher || softmax(z)). The new global model is the plain mean of the
    five iterates, each taken after its step (the start not among them), and is sent in the next round.
    `trace/<round>/teacher`: probabilities.
    """
    w, pool, trace = toy.start(), toy.pool(), {}
    names = [n for n in w if not toy.is_buffer(n)]
    at = {n: i for i, n in enumerate(w)}
    eps = [{n: toy.noise(tuple(w[n].shape), SALT["eps"] + 100 * j + at[n]) for n in names} for j in range(3)]
    for r, cohort in enumerate(COHORTS, 1):
        states, sizes = cohort_states(w, cohort)
        mu = toy.mean(states, sizes)
        var = toy.mean([{n: (s[n] - mu[n]) ** 2 for n in names} for s in states], sizes)
        draws = [mu | {n: mu[n] + var[n].sqrt() * e[n] for n in names} for e in eps]
        soft = torch.stack([F.softmax(toy.forward(s, pool)[0], 1) for s in draws + states + [mu]]).mean(0)
        student, iterates = toy.build(mu), []
        for _ in range(5):
            params = list(student.parameters())
            grads = torch.autograd.grad(toy.kl(soft, student(pool)[0]), params)
            with torch.no_grad():
                for p, g in zip(params, grads):
                    p -= 0.05 * g
            iterates.append(toy.state_of(student))
        w = toy.mean(iterates, [1] * 5)
        trace[f"{r}/teacher"] = soft
    given = {f"{j}/{n}": t for j, e in enumerate(eps) for n, t in e.items()}
    return {"model": w, "eps": given, "trace": trace}


def ccvr():
    """Four rounds of FedAvg; then every one of the six clients sends class moments of the final model's features.

    Final model in eval mode. Client: n_ck, mean mu_ck, covariance Sigma_ck with divisor n_ck - 1 (one image: zero).
    Server: mu_c = sum_k n_ck mu_ck / n_c; Sigma_c = sum_k (n_ck - 1) / (n_c - 1) Sigma_ck
    + sum_k n_ck / (n_c - 1) mu_ck mu_ck^T - n_c / (n_c - 1) mu_c mu_c^T, over the clients that own c.
    Nothing is added to the diagonal, nothing is drawn, the head stays. `state/{count,mean,covariance}`.
    """
    w = toy.start()
    for cohort in COHORTS:
        w = toy.mean(*cohort_states(w, cohort))
    n = torch.zeros(CLASSES).to(toy.DTYPE)
    first = torch.zeros(CLASSES, FEATURE).to(toy.DTYPE)
    second = torch.zeros(CLASSES, FEATURE, FEATURE).to(toy.DTYPE)
    for k in range(len(toy.CLIENTS)):
        x, y = toy.data(k)
        h = toy.forward(w, x)[1]
        for c in y.unique().tolist():
            d = h[y == c]
            mu, m = d.mean(0), len(d)
            scatter = (d - mu).T @ (d - mu)
            n[c] += m
            first[c] += m * mu
            second[c] += scatter + m * torch.outer(mu, mu)
    mu = first / n[:, None]
    outer = n[:, None, None] * mu[:, :, None] * mu[:, None, :]
    return {"model": w, "state": {"count": n, "mean": mu, "covariance": (second - outer) / (n - 1)[:, None, None]}}
