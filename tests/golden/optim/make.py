"""Three optimiser steps by PyTorch (any 2.x), written as constants for src/core/nn/optim.rs. Tolerance there: 2e-6.

Run: python tests/golden/optim/make.py > tests/golden/optim/expected.rs
"""
import torch

grads = [[0.5, -1.0], [0.25, 0.5], [-1.0, 2.0]]
momentum = dict(lr=0.1, momentum=0.9, weight_decay=0.01)
cases = [
    ("TORCH_SGD", torch.optim.SGD, dict(lr=0.1)),
    ("TORCH_MOMENTUM", torch.optim.SGD, momentum),
    ("TORCH_NESTEROV", torch.optim.SGD, dict(nesterov=True, **momentum)),
    ("TORCH_ADAMW", torch.optim.AdamW, dict(lr=0.1)),
    ("TORCH_ADAM", torch.optim.Adam, dict(lr=0.1)),
    ("TORCH_ADAM_DECAY", torch.optim.Adam, dict(lr=0.1, weight_decay=0.3)),
]
for name, kind, options in cases:
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimiser = kind([p], **options)
    for g in grads:
        p.grad = torch.tensor(g)
        optimiser.step()
    a, b = p.tolist()
    print(f"const {name}: [f64; 3] = [{a:.9}, {b:.9}, 5.0];")
