"""Loads a CLIP folder that this project saved with transformers, and keeps the embeddings it gives.

    FEDLLAVA_SAVE_CLIP=DIR cargo test --release --lib transformers_reads_what_is_saved
    python tests/golden/clip/check.py DIR

Made with torch 2.15.0, transformers 5.23.0, Pillow 13. Tolerance 1e-5. The texts and images are those of golden.json and
golden.safetensors; token ids and pixels come from the saved tokenizer and preprocessor by transformers' own classes.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

HERE = Path(__file__).parent
folder = sys.argv[1]
model, info = CLIPModel.from_pretrained(folder, output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"], info
tokenizer = AutoTokenizer.from_pretrained(folder)
processor = CLIPImageProcessorPil.from_pretrained(folder)
facts = json.loads((HERE / "golden.json").read_text())
stored = load_file(HERE / "golden.safetensors")
images = [stored[f"bytes.{h}x{w}"].permute(1, 2, 0).numpy() for h, w in facts["sizes"]]
with torch.no_grad():
    text = tokenizer(facts["texts"], padding="max_length", truncation=True, return_tensors="pt")
    out = {
        "text_embeds": model.get_text_features(input_ids=text.input_ids).pooler_output,
        "image_embeds": model.get_image_features(processor(images, return_tensors="pt").pixel_values).pooler_output,
    }
save_file({k: v.contiguous() for k, v in out.items()}, HERE / "saved.safetensors")
(HERE / "saved.safetensors").chmod(0o644)
