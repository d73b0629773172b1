"""Embeddings of the demo's CLIP (data/demo-clip) by transformers: the folder is a real CLIP, not only ours.

    python make.py            writes golden.safetensors beside this file

Made with transformers 5 and PyTorch 2.15 in float32 on a CPU. Pixels are the hash of ../net/make.py, texts are below;
their token ids come from transformers' own tokenizer of that folder. Tolerance of the test: 1e-4.
"""

import os
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, CLIPModel

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "net"))
from make import noise  # noqa: E402

TEXTS = ["a picture of a red striped circle", "two small blue dotted hearts on a dark background", "a green cross"]

if __name__ == "__main__":
    folder = os.path.join(HERE, "..", "..", "..", "data", "demo-clip")
    model = CLIPModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pixels = torch.from_numpy(noise(4 * 3 * 32 * 32, 4242)).float().reshape(4, 3, 32, 32)
    with torch.no_grad():
        image = model.get_image_features(pixel_values=pixels)
        image = image if torch.is_tensor(image) else image.pooler_output
        texts, ids = [], []
        for text in TEXTS:
            one = tokenizer([text], return_tensors="pt")
            feature = model.get_text_features(**one)
            texts.append(feature if torch.is_tensor(feature) else feature.pooler_output)
            ids.append(one["input_ids"][0].to(torch.int32))
    out = {"image": image.contiguous(), "text": torch.cat(texts).contiguous()}
    out |= {f"ids{i}": t.contiguous() for i, t in enumerate(ids)}
    save_file(out, os.path.join(HERE, "golden.safetensors"))
    print(image.shape, out["text"].shape, ids[0].tolist())
