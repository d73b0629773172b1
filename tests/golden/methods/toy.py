"""The toy federation that every method of this folder is run on: who holds what, who takes part, and how one trains.

Network: `resnet8(4, classes=4)` of ../net/make.py on 3x8x8 images: maps of 8x8, 4x4, 2x2, their mean, a feature of
width 16 and `classifier` 16 -> 4. Start: tensor i (from 0, in the order of the state, `num_batches_tracked` left
out) is `value(name, shape, i + 1)`.

Images, from the hash `noise` of ../net/make.py: image n of a set is noise(images * 192, salt)[192 n .. 192 (n + 1)]
as (3, 8, 8), and then 0.5 is added to every pixel whose index p in the image (0 .. 191, channel, row, column) has
p % 4 == label. Sets: clients' 40 (labels in toy.json), server's 8 (label n % 4), pool's 12 (shifted by n % 4, but
used without labels).

A client's step (`train`): its whole data in one batch, in its stored order; batch norm in train mode (batch
statistics; running statistics move by 0.1, the variance unbiased); plain SGD 0.1; two steps a round; no
augmentation. Means over a batch are over its rows. All arithmetic is in `DTYPE`.

Aggregation (`mean`), unless a method says otherwise: every tensor of the state, running statistics too, weighted by
the clients' image counts over those of the cohort.
"""

import importlib.util
import os

import torch
import torch.nn.functional as F

HERE = os.path.dirname(os.path.abspath(__file__))
_spec = importlib.util.spec_from_file_location("net_golden", os.path.join(HERE, "..", "net", "make.py"))
_net = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_net)

CLASSES, FEATURE, PIXELS = 4, 16, 3 * 8 * 8
RATE, STEPS = 0.1, 2
DTYPE = torch.float64

# Images of a class (column) at a client (row): 20, 12, 6, 2 in all; client 4 has one class, clients 3 and 5 have all.
HELD = [[3, 1, 0, 0], [5, 0, 1, 0], [0, 4, 2, 0], [4, 1, 1, 1], [7, 0, 0, 0], [1, 6, 2, 1]]
LABELS = [c for c in range(CLASSES) for _ in range(sum(row[c] for row in HELD))]
# Round 4 has nobody with class 3; every client takes part twice.
COHORTS = [[3, 0, 4], [5, 1, 3], [2, 5, 0], [4, 1, 2]]

SALT = {
    "clients": 7777,  # a method's own: see make.py
    "server": 7801,
    "pool": 7802,
    "teacher": 7803,
    "texts": 7804,
    "features": 7810,
    "first_head": 7811,
    "fresh_head": 7813,
    "sse_c": 7820,
    "sse_c_bias": 7821,
    "gate": 7830,
    "eps": 7900,
}


def clients():
    """Ids of every client in stored order: of each class the next ones, client by client; then by 7 id modulo 40."""
    at = [LABELS.index(c) for c in range(CLASSES)]
    held = []
    for row in HELD:
        ids = []
        for c, n in enumerate(row):
            ids += range(at[c], at[c] + n)
            at[c] += n
        held.append(sorted(ids, key=lambda i: 7 * i % len(LABELS)))
    return held


CLIENTS = clients()


def noise(shape, salt):
    n = 1
    for s in shape:
        n *= s
    return torch.from_numpy(_net.noise(n, salt)).reshape(shape).to(DTYPE)


def value(name, shape, salt):
    return _net.value(name, shape, salt).to(DTYPE)


def images(labels, salt):
    x = noise((len(labels), PIXELS), salt)
    for row, label in zip(x, labels):
        row[torch.arange(PIXELS) % CLASSES == label] += 0.5
    return x.reshape(-1, 3, 8, 8)


def data(k):
    """Images and labels of client k."""
    ids = CLIENTS[k]
    return images(LABELS, SALT["clients"])[ids], torch.tensor([LABELS[i] for i in ids])


def server_set():
    labels = [i % CLASSES for i in range(8)]
    return images(labels, SALT["server"]), torch.tensor(labels)


def pool():
    return images([i % CLASSES for i in range(12)], SALT["pool"])


def counts(k):
    return torch.tensor(HELD[k]).to(DTYPE)


def size(k):
    return len(CLIENTS[k])


def teacher_logits():
    """One row a client image: 5 noise."""
    return 5.0 * noise((len(LABELS), CLASSES), SALT["teacher"])


def texts():
    """One unit vector a class."""
    return F.normalize(noise((CLASSES, FEATURE), SALT["texts"]), dim=1)


def head(salt):
    """A hashed classifier: weight by `salt`, bias by `salt + 1`."""
    return value("classifier.weight", (CLASSES, FEATURE), salt), value("classifier.bias", (CLASSES,), salt + 1)


def build(state, train=False):
    model = _net.resnet8(4, classes=CLASSES).to(DTYPE)
    model.load_state_dict(state, strict=False)
    return model.train(train)


def state_of(model):
    return {n: t.detach().clone() for n, t in model.state_dict().items() if not n.endswith("num_batches_tracked")}


def start():
    model = _net.resnet8(4, classes=CLASSES)
    return {n: value(n, tuple(t.shape), i + 1) for i, (n, t) in enumerate(state_of(model).items())}


def is_buffer(name):
    return ".running_" in name


def forward(state, x):
    """Logits and features of a frozen model: eval mode, no gradient."""
    with torch.no_grad():
        logits, taps = build(state)(x)
    return logits, taps["feature"]


def mean(states, weights):
    total = float(sum(weights))
    return {n: sum((w / total) * s[n] for s, w in zip(states, weights)) for n in states[0]}


def zeros(state):
    return {n: torch.zeros_like(t) for n, t in state.items() if not is_buffer(n)}


def cross_entropy(logits, y, feature, model):
    return F.cross_entropy(logits, y)


def train(state, x, y, loss=cross_entropy, steps=STEPS, rate=RATE, correct=None, batch=None):
    """Local training. `loss(logits, y, feature, model)`; `correct(name, p)` is added to the gradient of p.

    With `batch` an epoch is cut in the stored order into batches of so many, the last short; `steps` then counts
    epochs. Returns the trained state and the number of steps.
    """
    model, taken = build(state, train=True), 0
    for _ in range(steps):
        for at in range(0, len(y), batch or len(y)):
            rows = slice(at, at + (batch or len(y)))
            logits, taps = model(x[rows])
            params = dict(model.named_parameters())
            grads = torch.autograd.grad(loss(logits, y[rows], taps["feature"], model), list(params.values()))
            with torch.no_grad():
                extra = [correct(n, p) if correct else 0.0 for n, p in params.items()]
                for p, g, e in zip(params.values(), grads, extra):
                    p -= rate * (g + e)
            taken += 1
    return state_of(model), taken


def kl(target, logits):
    """mean over rows of KL(target || softmax(logits)), `target` probabilities."""
    return F.kl_div(F.log_softmax(logits, 1), target, reduction="batchmean")


class Adam:
    """Kingma and Ba: m, v from zero, bias-corrected, eps 1e-8 outside the root; `decay` is L2 added to the
    gradient."""

    def __init__(self, rate=1e-3, decay=0.0):
        self.rate, self.decay, self.t, self.m, self.v = rate, decay, 0, {}, {}

    def step(self, params, grads):
        self.t += 1
        with torch.no_grad():
            for (n, p), g in zip(params.items(), grads):
                g = g + self.decay * p
                self.m[n] = 0.9 * self.m.get(n, torch.zeros_like(p)) + 0.1 * g
                self.v[n] = 0.999 * self.v.get(n, torch.zeros_like(p)) + 0.001 * g * g
                m, v = self.m[n] / (1 - 0.9**self.t), self.v[n] / (1 - 0.999**self.t)
                p -= self.rate * m / (v.sqrt() + 1e-8)

    def named(self, prefix):
        out = {f"{prefix}/m/{n}": t for n, t in self.m.items()} | {f"{prefix}/v/{n}": t for n, t in self.v.items()}
        return out | {f"{prefix}/steps": torch.tensor([float(self.t)])}
