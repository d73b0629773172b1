"""Golden files of CLIP: two small random models saved by transformers, tokenizer ids, pixels, embeddings, gradients.

    python tests/golden/clip/make.py [FOLDER WITH bpe_simple_vocab_16e6.txt.gz]

Made with torch 2.15.0 and transformers 5.23.0 (all versions are in
golden.json). Tolerances: ids and resized bytes equal; pixels 1e-6; embeddings and gradients 1e-4 (relative to the
tensor's norm for gradients).

  legacy/   quick_gelu, eos_token_id 2, vocab.json + merges.txt, preprocessor_config.json, pytorch names of old files
  modern/   gelu, true eos_token_id, another shape, tokenizer.json, processor_config.json, sharded weights
  pickle/   two tensors by torch.save
  golden.json, golden.safetensors   what they give
"""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
import PIL
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

HERE = Path(__file__).parent
LENGTH = 16
START, END = "<|startoftext|>", "<|endoftext|>"

TEXTS = [
    "a photo of a cat",
    "A Photo of a DOG.",
    "",
    "   ",
    "it's we're they've I'm you'll he'd can't",
    "IT'S WE'RE THEY'VE I'M",
    "caf\u00e9 na\u00efve cafe\u0301",
    "\u0130stanbul \u1e9e STRASSE \u00df",
    "two  spaces\tand\n\nlines\r\n",
    "\u00a0non\u2003breaking\u3000space",
    "12345 3.14 1,000 \u00bd \u2167 \u0663",
    "hello!!!??? --- *** ...",
    "<|startoftext|>inside<|endoftext|> of it <|ENDOFTEXT|>",
    "\u4f60\u597d\uff0c\u4e16\u754c \u3053\u3093\u306b\u3061\u306f \ud55c\uad6d\uc5b4",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7 ok",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd \u0939\u093f\u0928\u094d\u0926\u0940",
    "&amp; &lt;b&gt; <br/> http://x.y/z?a=1&b=2",
    "snake_case camelCase kebab-case a_b__c",
    "\u2019s curly \u201cquotes\u201d \u2014 dash\u2026",
    "zero\u200bwidth \ufeffbom \x00nul \x7fdel",
    "a photo of a " + "very " * 40 + "long text",
    "x" * 200,
]
CORPUS = ["a photo of a cat", "a photo of a dog", "a red circle on a blue background", "two small green squares",
          "three striped triangles above the dotted line", "it's a very long text", "hello world of photos"]


def byte_characters():
    """The printable stand-ins of the 256 bytes, in the order of GPT-2's table."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in kept]
    return {b: chr(b) for b in kept} | {b: chr(256 + i) for i, b in enumerate(rest)}


def learn(count):
    """Byte-pair merges of CORPUS: the most frequent pair, ties by the pair itself."""
    table = byte_characters()
    words = {}
    for line in CORPUS:
        for word in line.split():
            symbols = [table[b] for b in word.encode()]
            symbols[-1] += "</w>"
            words[tuple(symbols)] = words.get(tuple(symbols), 0) + 1
    merges = []
    for _ in range(count):
        pairs = {}
        for word, n in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] = pairs.get(pair, 0) + n
        if not pairs:
            break
        best = min(pairs, key=lambda p: (-pairs[p], p))
        merges.append(best)
        joined = {}
        for word, n in words.items():
            out, i = [], 0
            while i < len(word):
                if word[i : i + 2] == best:
                    out.append(word[i] + word[i + 1])
                    i += 2
                else:
                    out.append(word[i])
                    i += 1
            joined[tuple(out)] = joined.get(tuple(out), 0) + n
        words = joined
    characters = list(table.values())
    tokens = characters + [c + "</w>" for c in characters] + [a + b for a, b in merges] + [START, END]
    return {t: i for i, t in enumerate(tokens)}, merges


def picture(height, width, seed):
    """A smooth gradient with noise and hard edges, (3, H, W) bytes from integer arithmetic alone."""
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    planes = []
    for c in range(3):
        noise = (x * 7919 + y * 104729 + (c + seed) * 1299709) * 2654435761 % 4294967296 >> 27
        wave = (x * (3 + c) * 255 // max(width, 1) + y * (2 + seed) * 255 // max(height, 1)) % 256
        edge = np.where((x // 3 + y // 4) % 2 == 0, 255, 0)
        planes.append(np.where((x + y + c) % 5 == 0, edge, (wave + noise) % 256))
    return np.stack(planes).astype(np.uint8)


SIZES = [(64, 48), (7, 5), (32, 32), (5, 41), (8, 8), (100, 37)]


def config(vocab, **kinds):
    eos = vocab[END]
    if kinds["legacy"]:
        text = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                    hidden_act="quick_gelu", eos_token_id=2, bos_token_id=0, pad_token_id=1)
        vision = dict(hidden_size=20, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
                      image_size=8, patch_size=4, hidden_act="quick_gelu")
        projection = 12
    else:
        text = dict(hidden_size=12, intermediate_size=20, num_hidden_layers=1, num_attention_heads=3,
                    hidden_act="gelu", eos_token_id=eos, bos_token_id=vocab[START], pad_token_id=eos)
        vision = dict(hidden_size=24, intermediate_size=16, num_hidden_layers=3, num_attention_heads=3,
                      image_size=11, patch_size=3, hidden_act="gelu", layer_norm_eps=1e-6)
        projection = 10
    text |= dict(vocab_size=len(vocab), max_position_embeddings=LENGTH)
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection)


STEPS, WARMUP, RATE = 4, 2, 0.01


def train(model, inputs, pixels):
    """Four steps of torch.optim.AdamW with OpenCLIP's cosine_lr on one batch: losses, and the tensors after them."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), eps=1e-6)
    losses = []
    for step in range(STEPS):
        rate = (step + 1) / WARMUP if step < WARMUP else 0.5 * (1 + np.cos(np.pi * (step - WARMUP) / (STEPS - WARMUP)))
        for group in optimiser.param_groups:
            group["lr"] = RATE * rate
        loss = model(input_ids=inputs, pixel_values=pixels, return_loss=True).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, np.log(100))
        losses.append(loss.detach())
    return {"train.losses": torch.stack(losses)} | {
        f"train.{key}": digest(value.detach()) for key, value in model.named_parameters()
    }


def digest(value):
    """Norm, a projection, and up to 64 entries of a tensor."""
    flat = value.flatten().double()
    wave = torch.cos(torch.arange(len(flat), dtype=torch.float64) * 0.7)
    step = max(1, len(flat) // 64)
    return torch.cat([torch.stack([flat.norm(), (flat * wave).sum()]), flat[::step][:64]])


def main():
    vocab, merges = learn(60)
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH)
    ids = lambda t, texts: t(texts, padding="max_length", truncation=True).input_ids
    facts = {
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "pillow": PIL.__version__},
        "texts": TEXTS,
        "ids": ids(tokenizer, TEXTS),
        "sizes": SIZES,
    }
    if len(sys.argv) > 1:
        lines = gzip.open(Path(sys.argv[1]) / "bpe_simple_vocab_16e6.txt.gz").read().decode().split("\n")
        pairs = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
        characters = list(byte_characters().values())
        tokens = characters + [c + "</w>" for c in characters] + [a + b for a, b in pairs] + [START, END]
        openai = CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=pairs, model_max_length=77)
        facts["openai_ids"] = [openai(t, truncation=True).input_ids for t in TEXTS]
    tensors = {}
    for height, width in SIZES:
        image = picture(height, width, 1)
        tensors[f"bytes.{height}x{width}"] = torch.from_numpy(image)
    small = picture(19, 14, 3)
    tensors["resize.from"] = torch.from_numpy(small)
    for code in (1, 2, 3):
        for to in ((8, 8), (33, 40), (19, 5), (4, 14), (1, 1), (6, 9), (7, 9), (5, 20)):
            out = Image.fromarray(small.transpose(1, 2, 0)).resize((to[1], to[0]), resample=code)
            tensors[f"resize.{code}.{to[0]}x{to[1]}"] = torch.from_numpy(np.asarray(out).transpose(2, 0, 1).copy())
    for name in ("legacy", "modern"):
        torch.manual_seed(7)
        model = CLIPModel(config(vocab, legacy=name == "legacy")).eval()
        with torch.no_grad():  # larger than the usual start, so that every path carries a signal
            for key, value in sorted(model.named_parameters()):
                value.add_(torch.randn_like(value) * (0.1 if "norm" in key or "bias" in key else 0.08))
        folder = HERE / name
        folder.mkdir(exist_ok=True)
        side = model.config.vision_config.image_size
        processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        if name == "legacy":
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
            (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
            (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
        else:
            model.save_pretrained(folder, max_shard_size="20KB")
            transformers.CLIPProcessor(image_processor=processor, tokenizer=tokenizer).save_pretrained(folder)
        pixels = processor([picture(h, w, 1).transpose(1, 2, 0) for h, w in SIZES], return_tensors="pt").pixel_values
        inputs = torch.tensor(facts["ids"][: len(SIZES)])
        out = model(input_ids=inputs, pixel_values=pixels, return_loss=True)
        out.loss.backward()
        vision = model.vision_model(pixel_values=pixels, output_hidden_states=True)
        got = {
            "pixels": pixels,
            "image_embeds": model.get_image_features(pixels).pooler_output,
            "text_embeds": model.get_text_features(torch.tensor(facts["ids"])).pooler_output,
            "logits": out.logits_per_image,
            "loss": out.loss.reshape(1),
            "hidden.0": vision.hidden_states[0],
            "hidden.-2": vision.hidden_states[-2],
            "hidden.-1": vision.hidden_states[-1],
        }
        for key, value in model.named_parameters():
            got[f"grad.{key}"] = digest(value.grad)
        if name == "modern":
            got |= train(model, inputs, pixels)
        tensors |= {f"{name}.{k}": v.detach().float().contiguous() for k, v in got.items()}
    (HERE / "pickle").mkdir(exist_ok=True)
    pickled = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([0.5, -0.5], dtype=torch.float16)}
    torch.save(pickled, HERE / "pickle" / "pytorch_model.bin")
    save_file(tensors, HERE / "golden.safetensors")
    for path in HERE.rglob("*.safetensors"):
        path.chmod(0o644)
    (HERE / "golden.json").write_text(json.dumps(facts))


main()
