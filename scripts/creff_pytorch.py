"""CReFF (Shang et al., IJCAI 2022) in PyTorch, written without a look at the Rust code: on its split and cohorts, with
its own start, shuffles and augmentation draws, beside fedavg_pytorch.py, whose local training and averaging it uses.

    fedllava split export configs/cifar10-lt/quick.toml split.json
    python scripts/creff_pytorch.py split.json out.jsonl --data $FEDLLAVA_DATA/cifar10 --seed 1

One JSON line a round: fedavg_pytorch.py's, where "accuracy" is that of the averaged body with the retrained head, and
"fedavg_accuracy" that of the averaged model as it is; "distance" is the matching loss before the first and the last
step, "seconds" the whole round without evaluation, "measuring", "matching" and "retraining" parts of it.

A round: every online client measures the mean gradient of the head for each class it owns, at the round's body and the
*last retrained* head (at first a random one), and trains from the plain average. The server averages the gradients over
the clients that own the class, moves the federated features, which stay from round to round, so that their gradients
agree, and trains a new head on them. No client ever trains from a retrained head. The training draws come from a
generator of their own, so "fedavg_accuracy" is what fedavg_pytorch.py writes for the same seed and threads.

A head is one array (classes, width + 1), its last column the bias; features carry a last column of ones.
"""

import json
import math
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import fedavg_pytorch as fedavg


def new_head(classes, width):
    """`nn.Linear`'s own start."""
    linear = nn.Linear(width, classes)
    return torch.cat([linear.weight, linear.bias[:, None]], 1).detach()


def with_one(x):
    return F.pad(x, (0, 1), value=1.0)


def head_gradients(features, labels, head):
    """Gradients (k, classes, width + 1) of the mean cross-entropy of k groups (k, n, width + 1), each of one label."""
    # (p − y)ᵀF / n
    error = (features @ head.T).softmax(2) - F.one_hot(labels, len(head))[:, None, :]
    return error.transpose(1, 2) @ features / features.shape[1]


# DSA, of normalised images: one operation a batch, with the same parameters for every image of it.


def color(x, pick):
    brightness, saturation, contrast = pick.uniform(-0.5, 0.5), pick.uniform(0, 2), pick.uniform(0.5, 1.5)
    x = x + brightness
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * saturation + grey
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * contrast + mean


def crop(x, pick):
    top, left = (int(v) for v in pick.integers(9, size=2))
    return F.pad(x, (4, 4, 4, 4))[:, :, top : top + x.shape[2], left : left + x.shape[3]]


def cutout(x, pick):
    """A 16×16 square whose centre lies anywhere, cut off at the border."""
    x = x.clone()
    top, left = (int(v) - 8 for v in pick.integers(33, size=2))
    x[:, :, max(top, 0) : top + 16, max(left, 0) : left + 16] = 0
    return x


def flip(x, pick):
    return x.flip(3) if pick.random() < 0.5 else x


def warp(x, matrix):
    theta = torch.tensor(matrix, dtype=x.dtype).expand(len(x), 2, 3)
    return F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=False), align_corners=False)


def scale(x, pick):
    across, down = pick.uniform(1 / 1.2, 1.2, size=2)
    return warp(x, [[across, 0, 0], [0, down, 0]])


def rotate(x, pick):
    angle = math.radians(pick.uniform(-15, 15))
    return warp(x, [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]])


OPERATIONS = (color, crop, cutout, flip, scale, rotate)


def dsa(x, pick):
    operation = OPERATIONS[pick.integers(len(OPERATIONS))]
    return operation(x, pick).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def measure(body, head, x, y, pick, a):
    """What one client sends: class it owns → gradient (classes, width + 1), the mean of the repeats."""
    x = fedavg.normalise(x)
    sent = {}
    for c in y.unique():
        own = np.flatnonzero(y.numpy() == c.item())
        batches = (pick.permutation(own)[: a.real_batch] for _ in range(a.repeats))
        # The repeats are of equal size, so the mean of their gradients is that of all their images.
        features = torch.cat([body(dsa(x[torch.from_numpy(b)], pick)) for b in batches])
        sent[c.item()] = head_gradients(with_one(features)[None], c[None], head)[0]
    return sent


def mean_by_class(sent):
    """Class → plain mean over the clients that sent it, whatever their sizes."""
    owned = sorted({c for client in sent for c in client})
    return {c: torch.stack([client[c] for client in sent if c in client]).mean(0) for c in owned}


def distance(g, h):
    """Sum over (k, classes, width + 1): 1 − cosine of every row of the weights, and of every bias."""

    def far(u, v):
        lengths = torch.linalg.vector_norm(u, dim=-1) * torch.linalg.vector_norm(v, dim=-1)
        return (1 - (u * v).sum(-1) / (lengths + 1e-6)).sum()

    return far(g[..., :-1], h[..., :-1]) + far(g[..., -1], h[..., -1])


def match(features, head, gradients, a):
    """Moves the features (classes, n, width) of classes with a gradient, in place; the distance at first and last."""
    labels = torch.tensor(list(gradients))
    goal = torch.stack(list(gradients.values()))
    own = features[labels].requires_grad_()
    distances = []
    # The head's gradient is a closed form of the features, so that autograd differentiates once, all classes together.
    for _ in range(a.match_steps):
        loss = distance(head_gradients(with_one(own), labels, head), goal)
        (slope,) = torch.autograd.grad(loss, own)
        with torch.no_grad():
            own -= a.match_lr * slope
        distances.append(loss.item())
    features[labels] = own.detach()
    return distances[:: max(len(distances) - 1, 1)]


@torch.no_grad()
def retrain(features, a):
    """A new head (classes, width + 1), trained on the features by plain SGD."""
    classes, n, width = features.shape
    x = with_one(features.reshape(-1, width))
    y = torch.eye(classes).repeat_interleave(n, 0)
    head = new_head(classes, width).T.contiguous()
    # Thousands of steps of a few thousand multiplications: autograd and an optimiser would take several times as long.
    for _ in range(a.head_epochs):
        order = torch.randperm(len(x))
        for xs, ys in zip(x[order].split(a.head_batch), y[order].split(a.head_batch)):
            error = torch.mm(xs, head).softmax(1).sub_(ys)
            head.addmm_(xs.T, error, alpha=-a.head_lr / len(xs))
    return head.T.contiguous()


@torch.inference_mode()
def accuracies(net, head, x, y):
    """Of the body with the head given, and of the network as it is; the body runs once."""
    net.eval()
    right = [0, 0]
    for b, t in zip(x.split(fedavg.TESTED), y.split(fedavg.TESTED)):
        features = net[:-1](fedavg.normalise(b))
        for i, logits in enumerate((with_one(features) @ head.T, net[-1](features))):
            right[i] += (logits.argmax(1) == t).sum().item()
    return [n / len(y) for n in right]


def options():
    p = fedavg.options()
    p.set_defaults(rounds=40)
    p.add_argument("--features", type=int, default=100, help="federated features a class")
    p.add_argument("--repeats", type=int, default=10, help="batches of a class a client measures")
    p.add_argument("--real-batch", type=int, default=32, help="images of such a batch, at most")
    p.add_argument("--match-steps", type=int, default=100)
    p.add_argument("--match-lr", type=float, default=0.1)
    p.add_argument("--head-epochs", type=int, default=300)
    p.add_argument("--head-batch", type=int, default=32)
    p.add_argument("--head-lr", type=float, default=0.01)
    return p


def main():
    a = options().parse_args()
    split, (x, y), test, net, draw = fedavg.begin(a)
    pick = np.random.default_rng([a.seed, 1])
    state = {k: v.clone() for k, v in net.state_dict().items()}
    head = new_head(split["classes"], 4 * a.width)
    features = torch.randn(split["classes"], a.features, 4 * a.width)
    with open(a.out, "w", buffering=1) as out:
        for r in range(a.rounds):
            cohort = split["cohorts"][r]
            times = [time.perf_counter()]
            net.load_state_dict(state)
            net.eval()
            held = [torch.tensor(split["clients"][client]) for client in cohort]
            gradients = mean_by_class([measure(net[:-1], head, x[ids], y[ids], pick, a) for ids in held])
            times.append(time.perf_counter())
            state, loss = fedavg.one_round(net, state, split, cohort, x, y, draw, a)
            times.append(time.perf_counter())
            distances = match(features, head, gradients, a)
            times.append(time.perf_counter())
            head = retrain(features, a)
            times.append(time.perf_counter())
            net.load_state_dict(state)
            deployed, plain = accuracies(net, head, *test)
            times.append(time.perf_counter())
            measuring, _, matching, retraining, evaluation = np.diff(times).tolist()
            record = {"round": r + 1, "loss": loss, "accuracy": deployed, "fedavg_accuracy": plain}
            record |= {"distance": distances, "seconds": times[4] - times[0], "measuring": measuring}
            record |= {"matching": matching, "retraining": retraining, "evaluation": evaluation}
            out.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
