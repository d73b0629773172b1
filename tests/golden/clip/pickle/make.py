"""The two tensors of pytorch_model.bin in the other forms that torch.save writes.

Run: python tests/golden/clip/pickle/make.py    (made with torch 2.15)
"""

from pathlib import Path

import torch

HERE = Path(__file__).parent
plain = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([0.5, -0.5], dtype=torch.float16)}
torch.save(plain, HERE / "legacy.th", _use_new_zipfile_serialization=False)
prefixed = {"state_dict": {f"module.{k}": v for k, v in plain.items()}, "epoch": 3, "best": torch.tensor(0.5)}
torch.save(prefixed, HERE / "script.pth.tar", _use_new_zipfile_serialization=False)
# Both tensors lie in the middle of one storage; one is a parameter.
base = torch.arange(-2.0, 10.0)
torch.save({"a.weight": torch.nn.Parameter(base[2:8].view(2, 3)), "b": base[8:10]}, HERE / "views.pt")
torch.save({"a.weight": torch.arange(6.0).reshape(2, 3).t()}, HERE / "transposed.pt")
