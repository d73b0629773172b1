"""Laws that the golden values' own code must obey; run by hand after a change: python laws.py

Identities of the methods (a weight of zero gives FedAvg, and so on) and second ways to the same number: PyTorch's
optimisers, closed forms, moments of the pooled features.
"""

import torch
import torch.nn.functional as F

import client_side as client
import distil
import federated_features as features
import heads
import server_side as server
import toy


def close(name, a, b, tolerance=1e-12):
    a, b = (t if isinstance(t, dict) else {"": t} for t in (a, b))
    far = max(float((a[n] - b[n]).abs().max()) for n in b)
    assert set(a) == set(b) and far < tolerance, f"{name}: {far}"
    print(f"{name}: {far:.0e}")


def weights_of_zero():
    plain = client.fedavg()["model"]
    close("FedProx, mu 0", client.fedprox(mu=0.0)["model"], plain)
    close("MOON, mu 0", client.moon(mu=0.0)["model"], plain)
    close("focal, gamma 0", client.focal(gamma=0.0)["model"], plain)
    close("momentum, beta 0", server.momentum(False, beta=0.0)["model"], plain)
    close("moving average, beta 0", server.momentum(True, beta=0.0)["model"], plain)
    close("CReFF's model", features.creff()["model"], plain)
    toy.HELD, held = [[5] * 4] * 6, toy.HELD
    close("logit adjustment, uniform", client.logit_adjustment_local()["model"], plain)
    close("FedLC, uniform", client.fedlc()["model"], plain)
    toy.HELD = held


def one_full_round():
    everyone, cohorts = list(range(6)), list(toy.COHORTS)
    toy.COHORTS[:] = [everyone]
    w = toy.start()
    states, sizes = server.trained(w, everyone)
    mean = toy.mean(states, [1] * 6)
    twice = mean | {n: 2 * mean[n] - w[n] for n in toy.zeros(w)}
    alpha = 1e-9  # the proximal term vanishes, the server's step does not
    close("FedDyn, round one", server.feddyn(alpha)["model"], twice, 1e-6)
    close("SCAFFOLD, round one", server.scaffold()["model"], mean)
    run = server.scaffold()
    c = {n: sum(v[n] for v in run["kept"].values()) / 6 for n in toy.zeros(w)}
    close("SCAFFOLD, c is the mean of c_k", {n: run["state"][f"c/{n}"] for n in c}, c)
    toy.COHORTS[:] = cohorts
    for k in everyone:
        steps = {0: 2, 5: 6}.get(k, 4)
        assert toy.train(w, *toy.data(k), batch=4)[1] == steps, k


def optimisers():
    w, (x, y) = toy.start(), toy.data(5)
    for name, ours, theirs in [
        ("Adam", lambda: distil.Adam(decay=2e-4), lambda p: torch.optim.Adam(p, 1e-3, weight_decay=2e-4)),
        ("SGD", None, lambda p: torch.optim.SGD(p, 0.1)),
    ]:
        model = toy.build(w, train=True)
        optimiser = theirs(model.parameters())
        for _ in range(2):
            optimiser.zero_grad()
            F.cross_entropy(model(x)[0], y).backward()
            optimiser.step()
        if ours:
            mine = toy.build(w, train=True)
            distil.descend(mine, lambda m: F.cross_entropy(m(x)[0], y), ours(), 2)
            mine = toy.state_of(mine)
        else:
            mine = toy.train(w, x, y)[0]
        close(name, mine, toy.state_of(model))


def closed_forms():
    f, t = toy.noise((20, 16), 1), toy.texts()
    s = f @ t.T / 0.1
    own = F.one_hot(features.SYN_LABELS, 4).bool()
    wide = s + torch.where(own, 4.0, 5.0).to(s).log()
    close("contrast", features.contrast(f, t, 0.1), (torch.logsumexp(wide, 1) - s[own]).mean())
    head = toy.head(1)
    p = F.softmax(f @ head[0].T + head[1], 1) - F.one_hot(torch.full((20,), 2), 4)
    w, b = features.head_gradient(head, f, 2)
    close("gradient of a head", w, p.T @ f / 20)
    close("gradient of its bias", b, p.mean(0))
    q = F.softmax(toy.noise((7, 4), 3) * 5, 1)
    z = toy.noise((7, 4), 4)
    close("KL", toy.kl(q, z), (q * (q.log() - F.log_softmax(z, 1))).sum(1).mean())


def moments():
    run = distil.ccvr()
    pairs = [toy.data(k) for k in range(6)]
    x, y = torch.cat([p[0] for p in pairs]), torch.cat([p[1] for p in pairs])
    h = toy.forward(run["model"], x)[1]
    close("CCVR's means", run["state"]["mean"], torch.stack([h[y == c].mean(0) for c in range(4)]))
    close("CCVR's covariances", run["state"]["covariance"], torch.stack([h[y == c].T.cov() for c in range(4)]))


def gates_and_heads():
    w, x = toy.start(), toy.pool()
    z = toy.forward(w, x)[0]
    gate = distil.gate_start()
    gate["ensemble_scale"] = toy.noise((4,), 5)
    close("FEDIC's gate, equal clients", distil.gated(gate, [w] * 3, x, z).detach(), z)
    rows = heads.fedloge()["deployed.gla-fr"]["classifier.weight"].norm(dim=1)
    close("GLA-FR's rows", rows, torch.full_like(rows, 1.7))
    eff = heads.effective(w, 2)
    assert eff.tolist()[0] == 0 and abs(float(eff[2]) - 1e6) < 1, eff
    first = heads.merge(None, torch.tensor([1.0, 2.0, 1e6, 0.0]).double(), True)
    close("FedYoYo, round one", first, torch.tensor([2.0, 3.0, 2.0, 1.0]).double())
    later = heads.merge(first, torch.tensor([1e6, 9.0, 1.0, 0.0]).double(), False)
    close("FedYoYo, later", later, torch.tensor([2.0, 3.7, 2.0, 1.0], dtype=torch.float64))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for law in [weights_of_zero, one_full_round, optimisers, closed_forms, moments, gates_and_heads]:
        law()
