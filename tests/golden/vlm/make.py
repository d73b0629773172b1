"""Small random multimodal models in the layouts of the published ones, and what the reference code computes with them.

    python make.py          # transformers 5.24, peft 0.21, torch 2.15, Pillow 11.3

smolvlm, qwen2_5_vl: transformers' classes and image processors (PIL back ends). minicpmv: transformers' Qwen2 and SigLIP
layers and torch's MultiheadAttention, put together here as the published remote code does (its own code is no part of
transformers); the real one's numbers are in other folders, see `src/model/vlm/golden.rs`.
A folder: config.json, model.safetensors (bf16 or f32), generation_config.json, tokenizer.json, tokenizer_config.json,
preprocessor_config.json, chat_template.json; expected.json: `samples` (messages, prompt, pictures, input_ids, last_logits,
greedy), `train` (input_ids, labels, loss, gradients of the language model's q, k, v, o: norm and some entries);
expected.safetensors: pixel_values.<picture>, image_features.<picture>. lora_<model>: an adapter that PEFT wrote, with
losses, gradients and three AdamW steps. All arithmetic in f32, eager attention.
A tile of smolvlm is no whole number of patches, as in SmolVLM-Instruct. Tolerances are in the test.
"""

import json
import math
import pathlib
import random
import re

import numpy as np
import torch
import transformers
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.modeling_siglip import SiglipEncoder
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

HERE = pathlib.Path(__file__).parent
WORDS = ["what is in the picture?", "is the content hateful?", "a small boat on the blue water", "describe the image in one word",
         "how many birds are there?", "You are a helpful assistant.", "system user assistant", "System: User: Assistant:", "not-hateful"]


def pictures():
    found = {}
    for name, (w, h) in {"wide": (41, 22), "tall": (19, 36)}.items():
        y, x = np.mgrid[:h, :w]
        rgb = np.stack([255 * x / w, 255 * y / h, 127 + 127 * np.sin(x * y / 9 + len(name) * (name == "tall"))], -1)
        rgb[5:12, 4:13] = [250, 20, 30]
        Image.fromarray(rgb.astype(np.uint8)).save(HERE / f"{name}.png")
        found[name] = Image.open(HERE / f"{name}.png").convert("RGB")
    return found


def tokenizer(folder, special, config):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tok.train_from_iterator(WORDS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False))
    tok.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in special])
    tok.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
    return tok


def randomise(model, seed, store):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            size = 0.08 if p.ndim == 1 else 1.3 / math.sqrt(p.shape[-1] if p.ndim == 2 else p[0].numel())
            value = torch.randn(p.shape, generator=g) * size
            value += 1.0 if "norm" in name and name.endswith("weight") or re.search(r"ln_\w+\.weight", name) else 0.0
            p.copy_(value.to(store).float())
    model.float().eval()


def rounded(values):
    return [float(f"{v:.7g}") for v in values]


def some(t):
    flat = t.detach().float().flatten()
    index = list(range(0, flat.numel(), max(1, flat.numel() // 8)))[:8]
    return {"shape": list(t.shape), "norm": flat.double().norm().item(), "index": index, "value": [flat[i].item() for i in index]}


def ask(logits_of, case, ids):
    """logits_of(ids) -> (tokens, vocabulary); greedy without a cache."""
    with torch.no_grad():
        out, new = list(ids), []
        first = None
        for _ in range(8):
            last = logits_of(out)[-1]
            first = last if first is None else first
            new.append(int(last.argmax()))
            out.append(new[-1])
    return case | {"input_ids": list(ids), "last_logits": rounded(first.tolist()), "greedy": new}


def loss_of(logits, targets):
    """targets: (at, token)."""
    at, tokens = zip(*targets)
    return torch.nn.functional.cross_entropy(logits[list(at)], torch.tensor(tokens))


def train(logits_of, parameters, ids, prompt_ids, more):
    start = len(prompt_ids)
    assert ids[:start] == prompt_ids
    loss = loss_of(logits_of(ids), [(i - 1, ids[i]) for i in range(start, len(ids))])
    grads = torch.autograd.grad(loss, [p for _, p in parameters])
    labels = [-100] * start + ids[start:]
    return more | {"input_ids": ids, "labels": labels, "loss": loss.item(), "grads": {n: some(g) for (n, _), g in zip(parameters, grads)}}


def adapter(folder, base, model, regex, save, batch, losses_of, key):
    """losses_of(peft model) -> (sum of token losses, tokens)."""
    plain = (lambda s, n: (s / n).item())(*losses_of(model))
    peft = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, lora_dropout=0.0, target_modules=regex, modules_to_save=save, task_type=None))
    g = torch.Generator().manual_seed(key)
    with torch.no_grad():
        for name, p in sorted(peft.named_parameters()):
            if "lora_" in name:
                p.copy_(torch.randn(p.shape, generator=g) * 0.2)
    peft.eval().save_pretrained(folder)
    trained = {n.replace(".default", "").replace(".modules_to_save", ""): p for n, p in peft.named_parameters() if p.requires_grad}
    optimiser = torch.optim.AdamW(trained.values(), lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    losses, grads = [], None
    for step in range(4):
        total, n = losses_of(peft)
        loss = total / n
        losses.append(loss.item())
        if step == 3:
            break
        optimiser.zero_grad()
        loss.backward()
        if step == 0:
            grads = {n: some(p.grad if p.grad is not None else torch.zeros_like(p)) for n, p in trained.items()}
        optimiser.step()
    (folder / "README.md").unlink(missing_ok=True)
    write(folder / "expected.json", {"base": base, "batch": batch, "loss_without_adapter": plain, "loss": losses[0], "losses": losses, "grads": grads,
                                     "after_3_steps": {n: some(p) for n, p in trained.items()}, "trainable": sum(p.numel() for p in trained.values())})


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")


def text(t):
    return {"type": "text", "text": t}


PICTURE = {"type": "image"}


def conversations():
    return {
        "wide/p1": (["wide"], [{"role": "user", "content": [PICTURE, text("what is in the picture?")]}]),
        "tall/p2": (["tall"], [{"role": "system", "content": [text("describe the image in one word")]},
                               {"role": "user", "content": [text("is the content hateful? "), PICTURE, text(" how?")]}]),
        "two": (["tall", "wide"], [{"role": "user", "content": [PICTURE, text("a boat"), PICTURE, text("how many birds?")]},
                                   {"role": "assistant", "content": [text("31")]}, {"role": "user", "content": [text("is it 2?")]}]),
        "text": ([], [{"role": "user", "content": [text("is the content hateful? (A) no (B) yes")]}]),
    }


def render(template, messages):
    import jinja2

    env = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    return env.from_string(template).render(messages=messages, add_generation_prompt=True)


def begin(name, config, special, tok_config, pre, template, stop):
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    tok = tokenizer(folder, special, tok_config)
    config = {k: (v(tok) if callable(v) else v) for k, v in config.items()}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "preprocessor_config.json").write_text(json.dumps(pre, indent=1))
    if template:
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}, indent=1))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": tok.token_to_id(stop)}))
    return folder, tok, config


# ---- SmolVLM ---------------------------------------------------------------------------------------------------------
SMOL_TEMPLATE = ("<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}{% if m['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}"
                 "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% else %}<image>{% endif %}{% endfor %}<end_of_utterance>\n"
                 "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}")


def smolvlm(shots):
    special = ["<|im_start|>", "<|im_end|>", "<fake_token_around_image>", "<global-img>", "<image>", "<end_of_utterance>"]
    special += [f"<row_{r}_col_{c}>" for r in range(1, 4) for c in range(1, 4)]
    vision = dict(model_type="smolvlm_vision", hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3, image_size=18,
                  patch_size=4, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6, num_channels=3)
    words = 300 + len(special)
    llm = dict(model_type="llama", vocab_size=words, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
               head_dim=6, max_position_embeddings=512, rms_norm_eps=1e-5, rope_theta=100000.0, hidden_act="silu", bos_token_id=300, eos_token_id=305)
    config = dict(architectures=["SmolVLMForConditionalGeneration"], model_type="smolvlm", image_token_id=lambda t: t.token_to_id("<image>"), scale_factor=2,
                  tie_word_embeddings=False, text_config=llm, vision_config=vision, vocab_size=words)
    pre = dict(do_convert_rgb=True, do_image_splitting=True, do_normalize=True, do_pad=True, do_rescale=True, do_resize=True, image_mean=[0.5] * 3,
               image_std=[0.5] * 3, max_image_size={"longest_edge": 18}, size={"longest_edge": 36}, resample=1, rescale_factor=1 / 255)
    tok_config = dict(bos_token="<|im_start|>", eos_token="<end_of_utterance>", pad_token="<|im_end|>", image_token="<image>")
    folder, tok, config = begin("smolvlm", config, special, tok_config, pre, SMOL_TEMPLATE, "<end_of_utterance>")
    assert tok.get_vocab_size() == words, tok.get_vocab_size()
    cfg = transformers.SmolVLMConfig.from_dict(config)
    cfg._attn_implementation = "eager"
    model = transformers.SmolVLMForConditionalGeneration._from_config(cfg, attn_implementation="eager")
    randomise(model, 1, torch.float32)
    save_file({n: t.contiguous() for n, t in model.state_dict().items()}, folder / "model.safetensors", metadata={"format": "pt"})
    processor = SmolVLMImageProcessorPil(**pre)

    def seen(name, split=True):
        got = processor([shots[name]], return_tensors="pt", return_row_col_info=True, do_image_splitting=split)
        return got["pixel_values"].reshape(-1, 3, 18, 18), got["rows"][0][0], got["cols"][0][0]

    def read(prompt, names, split=True):
        tiles = []
        for name in names:
            pixels, rows, cols = seen(name, split)
            spelled = get_image_prompt_string(rows, cols, 4, image_token="\0", fake_token_around_image="<fake_token_around_image>", global_image_token="<global-img>")
            prompt = prompt.replace("<image>", spelled, 1)
            tiles.append(pixels)
        return tok.encode(prompt.replace("\0", "<image>")).ids, torch.cat(tiles) if tiles else None

    def logits(tiles, ids, net=model):
        more = {} if tiles is None else {"pixel_values": tiles[None]}
        return net(input_ids=torch.tensor([ids]), **more).logits[0]

    samples = {}
    for name, (names, messages) in conversations().items():
        prompt = render(SMOL_TEMPLATE, messages)
        ids, tiles = read(prompt, names)
        samples[name] = ask(lambda x: logits(tiles, x), {"pictures": names, "messages": messages, "prompt": prompt}, ids)
    prompt = render(SMOL_TEMPLATE, conversations()["wide/p1"][1])
    ids, tiles = read(prompt, ["wide"], False)
    samples["wide/one_tile"] = ask(lambda x: logits(tiles, x), {"pictures": ["wide"], "prompt": prompt}, ids)
    ids, tiles = read(prompt, ["wide"])
    target = " a small boat<end_of_utterance>"
    full, _ = read(prompt + target, ["wide"])
    chosen = [(n, p) for n, p in model.named_parameters() if "text_model" in n and re.search(r"[qkvo]_proj\.weight", n)]
    expected = {"samples": samples, "train": train(lambda x: logits(tiles, x), chosen, full, ids, {"picture": "wide", "prompt": prompt, "target": target})}
    write(folder / "expected.json", expected)
    out = {}
    with torch.no_grad():
        for name in shots:
            out[f"pixel_values.{name}"] = seen(name)[0].contiguous()
            features = model.model.get_image_features(seen(name)[0][None])
            features = getattr(features, "pooler_output", features)
            out[f"image_features.{name}"] = (features if torch.is_tensor(features) else features[0]).flatten(0, 1).contiguous()
    save_file(out, folder / "expected.safetensors")
    two = render(SMOL_TEMPLATE, conversations()["text"][1])
    rows = [(prompt, target, "wide"), (two, " no<end_of_utterance>", None)]
    read_rows = [(read(p, [n] if n else []), read(p + t, [n] if n else [])[0]) for p, t, n in rows]

    def losses(net):
        total, count = 0, 0
        for (asked, tiles), full in read_rows:
            targets = [(i - 1, full[i]) for i in range(len(asked), len(full))]
            total, count = total + loss_of(logits(tiles, full, net), targets) * len(targets), count + len(targets)
        return total, count

    batch = {"prompts": [r[0] for r in rows], "targets": [r[1] for r in rows], "pictures": [r[2] for r in rows], "input_ids": [f for _, f in read_rows],
             "target_tokens": [len(f) - len(a[0]) for a, f in read_rows]}
    adapter(HERE / "lora_smolvlm", "smolvlm", model, r".*text_model\.layers\.\d+\.self_attn\.(q_proj|k_proj|v_proj|o_proj)", None, batch, losses, 5)


# ---- Qwen2.5-VL ------------------------------------------------------------------------------------------------------
QWEN_TEMPLATE = ("{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
                 "<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
                 "{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def qwen(shots):
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    words = 300 + len(special)
    vision = dict(model_type="qwen2_5_vl", depth=3, hidden_act="silu", hidden_size=24, intermediate_size=40, num_heads=3, out_hidden_size=32, patch_size=4,
                  spatial_merge_size=2, temporal_patch_size=2, window_size=16, fullatt_block_indexes=[1], in_chans=3)
    config = dict(architectures=["Qwen2_5_VLForConditionalGeneration"], model_type="qwen2_5_vl", vocab_size=words, hidden_size=32, intermediate_size=48,
                  num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=1e-6, hidden_act="silu",
                  bos_token_id=300, eos_token_id=302, use_sliding_window=False, rope_theta=1000000.0, rope_scaling={"type": "mrope", "mrope_section": [1, 1, 2]},
                  image_token_id=305, video_token_id=306, vision_start_token_id=303, vision_end_token_id=304, tie_word_embeddings=False, vision_config=vision)
    pre = dict(image_mean=[0.48145466, 0.4578275, 0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711], patch_size=4, temporal_patch_size=2, merge_size=2,
               min_pixels=256, max_pixels=1024)
    tok_config = dict(eos_token="<|im_end|>", pad_token="<|endoftext|>")
    folder, tok, config = begin("qwen2_5_vl", config, special, tok_config, pre, QWEN_TEMPLATE, "<|im_end|>")
    assert tok.get_vocab_size() == words, tok.get_vocab_size()
    cfg = transformers.Qwen2_5_VLConfig.from_dict(json.loads(json.dumps(config)))
    model = transformers.Qwen2_5_VLForConditionalGeneration._from_config(cfg, attn_implementation="eager")
    randomise(model, 2, torch.bfloat16)
    hub = {n.replace("model.visual.", "visual.").replace("model.language_model.", "model."): t.to(torch.bfloat16).contiguous() for n, t in model.state_dict().items()}
    save_file(hub, folder / "model.safetensors", metadata={"format": "pt"})
    processor = Qwen2VLImageProcessorPil(**pre)

    def seen(name):
        got = processor([shots[name]], return_tensors="pt")
        return got["pixel_values"], got["image_grid_thw"]

    def read(prompt, names):
        pixels, grids = [], []
        for name in names:
            p, g = seen(name)
            pixels.append(p)
            grids.append(g)
            prompt = prompt.replace("<|image_pad|>", "\0" * int(g.prod() // 4), 1)
        return tok.encode(prompt.replace("\0", "<|image_pad|>")).ids, (torch.cat(pixels), torch.cat(grids)) if names else None

    def kinds(ids):
        return torch.tensor([[int(i == 305) for i in ids]])

    def logits(given, ids, net=model):
        more = {} if given is None else {"pixel_values": given[0], "image_grid_thw": given[1], "mm_token_type_ids": kinds(ids)}
        return net(input_ids=torch.tensor([ids]), **more).logits[0]

    samples = {}
    for name, (names, messages) in conversations().items():
        prompt = render(QWEN_TEMPLATE, messages)
        ids, given = read(prompt, names)
        case = {"pictures": names, "messages": messages, "prompt": prompt}
        if given is not None:
            positions, delta = model.model.get_rope_index(torch.tensor([ids]), kinds(ids), image_grid_thw=given[1])
            case |= {"position_ids": positions[:, 0].tolist(), "rope_delta": int(delta.flatten()[0])}
        samples[name] = ask(lambda x: logits(given, x), case, ids)
    prompt = render(QWEN_TEMPLATE, conversations()["wide/p1"][1])
    target = "a small boat<|im_end|>"
    (ids, given), full = read(prompt, ["wide"]), read(prompt + target, ["wide"])[0]
    chosen = [(n, p) for n, p in model.named_parameters() if "language_model" in n and re.search(r"[qkvo]_proj\.weight", n)]
    write(folder / "expected.json", {"samples": samples, "train": train(lambda x: logits(given, x), chosen, full, ids, {"picture": "wide", "prompt": prompt, "target": target})})
    out = {}
    with torch.no_grad():
        for name in shots:
            pixels, grid = seen(name)
            out[f"pixel_values.{name}"] = pixels.contiguous()
            features = model.model.visual(pixels, grid_thw=grid)
            out[f"image_features.{name}"] = getattr(features, "pooler_output", features).contiguous()
    save_file(out, folder / "expected.safetensors")


# ---- MiniCPM-V 2.6 ---------------------------------------------------------------------------------------------------
MARK = "(<image>./</image>)"
CHATML = ("{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
          "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
SCALE, P, QUERIES, MOST, WIDE, SIDE = 24, 4, 3, 4, 128, 12


class Resampler(torch.nn.Module):
    def __init__(self, wide, seen):
        super().__init__()
        self.query = torch.nn.Parameter(torch.zeros(QUERIES, wide))
        self.kv_proj = torch.nn.Linear(seen, wide, bias=False)
        self.attn = torch.nn.MultiheadAttention(wide, wide // 128)
        self.ln_q, self.ln_kv, self.ln_post = (torch.nn.LayerNorm(wide, eps=1e-6) for _ in range(3))
        self.proj = torch.nn.Parameter(torch.zeros(wide, wide))

    def forward(self, x, rows, columns):
        wide = self.query.shape[1]
        omega = 1.0 / 10000 ** (np.arange(wide // 4, dtype=np.float32) / (wide / 4.0))
        code = lambda n: np.concatenate([np.sin(np.outer(np.arange(n), omega)), np.cos(np.outer(np.arange(n), omega))], 1)  # noqa: E731
        place = np.concatenate([np.tile(code(columns)[None], (rows, 1, 1)), np.tile(code(rows)[:, None], (1, columns, 1))], -1)
        place = torch.tensor(place.reshape(rows * columns, wide), dtype=torch.float32)
        x = self.ln_kv(self.kv_proj(x))
        out = self.attn(self.ln_q(self.query)[:, None], (x + place)[:, None], x[:, None])[0][:, 0]
        return self.ln_post(out) @ self.proj


class Vision(torch.nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.embeddings = torch.nn.Module()
        self.embeddings.patch_embedding = torch.nn.Conv2d(3, cfg.hidden_size, P, P)
        self.embeddings.position_embedding = torch.nn.Embedding(SIDE * SIDE, cfg.hidden_size)
        self.encoder = SiglipEncoder(cfg)
        self.post_layernorm = torch.nn.LayerNorm(cfg.hidden_size, eps=1e-6)

    def forward(self, pixels):
        x = self.embeddings.patch_embedding(pixels[None])
        rows, columns = x.shape[-2:]
        bucket = lambda n: torch.tensor([math.floor(i * SIDE / n) for i in range(n)])  # noqa: E731
        places = (bucket(rows)[:, None] * SIDE + bucket(columns)).flatten()
        x = x.flatten(2).transpose(1, 2) + self.embeddings.position_embedding(places)
        return self.post_layernorm(self.encoder(inputs_embeds=x).last_hidden_state)[0], rows, columns


class MiniCpmV(torch.nn.Module):
    def __init__(self, text_config, vision_config):
        super().__init__()
        self.llm = transformers.Qwen2ForCausalLM._from_config(text_config, attn_implementation="eager")
        self.vpm = Vision(vision_config)
        self.resampler = Resampler(WIDE, vision_config.hidden_size)

    def forward(self, ids, parts, bounds):
        x = self.llm.model.embed_tokens(torch.tensor(ids))
        for (a, b), part in zip(bounds, parts):
            x = torch.cat([x[:a], self.resampler(*self.vpm(part)), x[b:]])
        return self.llm(inputs_embeds=x[None]).logits[0]


def fit(w, h):
    ratio = w / h
    height = int(SCALE / math.sqrt(ratio))
    width = int(height * ratio)
    return tuple(max(round(n / P) * P, P) for n in (width, height))


def cut(image):
    w, h = image.size
    m = min(math.ceil(w * h / SCALE**2), MOST)
    number = lambda i: torch.tensor((np.asarray(i, dtype=np.float32) / 255 - 0.5) / 0.5).permute(2, 0, 1)  # noqa: E731
    if m <= 1:
        return None, [image.resize(fit(w, h), Image.BICUBIC)], number
    grids = [(c, n // c) for n in (m - 1, m, m + 1) if 1 < n <= MOST for c in range(1, n + 1) if n % c == 0]
    columns, rows = min(grids, key=lambda g: abs(math.log(w / h) - math.log(g[0] / g[1])))
    source = image.resize(fit(w, h) if w * h > SCALE**2 else tuple(max(round(n / P) * P, P) for n in (w, h)), Image.BICUBIC)
    near = [max(round(n / g) * g, g) for n, g in ((w, columns), (h, rows))]
    cw, ch = fit(near[0] / columns, near[1] / rows)
    refined = image.resize((cw * columns, ch * rows), Image.BICUBIC)
    return (columns, rows), [source] + [refined.crop((c * cw, r * ch, (c + 1) * cw, (r + 1) * ch)) for r in range(rows) for c in range(columns)], number


def minicpmv(shots):
    special = ["<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "</image>", "<slice>", "</slice>", "<image_id>", "</image_id>"]
    words = 300 + len(special)
    vision = dict(model_type="siglip", hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3, image_size=SIDE * P, patch_size=P)
    llm = dict(vocab_size=words, hidden_size=WIDE, intermediate_size=40, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=1, rms_norm_eps=1e-6,
               max_position_embeddings=512, rope_theta=1000000.0, hidden_act="silu", bos_token_id=301, eos_token_id=303, tie_word_embeddings=False)
    config = dict(architectures=["MiniCPMV"], version=2.6, model_type="minicpmv", drop_vision_last_layer=False, image_size=448, patch_size=P, query_num=QUERIES,
                  vision_config=vision, use_sliding_window=False, **llm)
    pre = dict(image_processor_type="MiniCPMVImageProcessor", max_slice_nums=MOST, scale_resolution=SCALE, patch_size=P, use_image_id=True, slice_mode=True,
               norm_mean=[0.5] * 3, norm_std=[0.5] * 3, version=2.6)
    tok_config = dict(eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token="<unk>", chat_template=CHATML)
    folder, tok, config = begin("minicpmv", config, special, tok_config, pre, None, "<|im_end|>")
    assert tok.get_vocab_size() == words, tok.get_vocab_size()
    vcfg = transformers.SiglipVisionConfig(hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6, attn_implementation="eager", **{k: v for k, v in vision.items() if k != "model_type"})
    model = MiniCpmV(transformers.Qwen2Config(**llm), vcfg)
    randomise(model, 3, torch.bfloat16)
    save_file({n: t.to(torch.bfloat16).contiguous() for n, t in model.state_dict().items()}, folder / "model.safetensors", metadata={"format": "pt"})
    unk = "<unk>" * QUERIES

    def read(prompt, names, sliced_only=False):
        parts = []
        for k, name in enumerate(names):
            grid, images, number = cut(shots[name])
            rows = [f"<slice>{unk}</slice>" * grid[0]] * grid[1] if grid else []
            tag = "" if sliced_only and not grid else f"<image_id>{k}</image_id>"
            prompt = prompt.replace(MARK, f"{tag}<\0image>{unk}<\0/image>" + "\n".join(rows), 1)
            parts += [number(i) for i in images]
        ids = tok.encode(prompt.replace("\0", "")).ids
        opens, closes = ([i for i, t in enumerate(ids) if tok.id_to_token(t) in s] for s in (("<image>", "<slice>"), ("</image>", "</slice>")))
        bounds = [(a + 1, b) for a, b in zip(opens, closes)]
        assert len(bounds) == len(parts)
        return ids, parts, bounds

    samples = {}
    for name, (names, messages) in conversations().items():
        flat = [{"role": m["role"], "content": "\n".join(MARK if c["type"] == "image" else c["text"] for c in m["content"])} for m in messages]
        prompt = render(CHATML, flat)
        ids, parts, bounds = read(prompt, names)
        samples[name] = ask(lambda x: model(x, parts, bounds), {"pictures": names, "messages": flat, "prompt": prompt}, ids)

    def lesson(picture, question, answer):
        content = question.replace("<image>", MARK)
        prompt = render(CHATML, [{"role": "user", "content": content}]) + f"{answer}<|im_end|>\n"
        ids, parts, bounds = read(prompt, [picture] if picture else [], True)
        end = max(i for i, t in enumerate(ids) if tok.id_to_token(t) == "<|im_end|>")
        begin = tok.encode("<|im_start|>assistant").ids
        start = max(i for i in range(len(ids)) if ids[i : i + len(begin)] == begin) + len(begin)
        labels = [-100] * len(ids)
        for i in range(start, end + 1):
            labels[i - 1] = ids[i]
        labels[end] = ids[end]
        return ids, parts, bounds, labels

    def total(net, one):
        ids, parts, bounds, labels = one
        targets = [(i, t) for i, t in enumerate(labels) if t != -100]
        return loss_of(net(ids, parts, bounds), targets) * len(targets), len(targets)

    talks = {"sliced": ("wide", "<image>\nis the content hateful?\nOptions:\n(A) not-hateful\n", "(A) not-hateful"), "text_only": (None, "how many birds are there?", "31")}
    lessons = {k: lesson(*v) for k, v in talks.items()}
    chosen = [(n, p) for n, p in model.named_parameters() if n.startswith("llm.") and re.search(r"[qkvo]_proj\.weight", n)]
    more = [(n, p) for n, p in model.named_parameters() if n.startswith("resampler.") or "embed_tokens" in n]
    training = {}
    for name, one in lessons.items():
        s, n = total(model, one)
        grads = torch.autograd.grad(s / n, [p for _, p in chosen + more], allow_unused=True)
        grads = {k: some(g if g is not None else torch.zeros_like(p)) for (k, p), g in zip(chosen + more, grads)}
        picture, question, answer = talks[name]
        training[name] = {"picture": picture, "question": question, "answer": answer, "input_ids": one[0], "labels_already_shifted": one[3], "loss": (s / n).item(),
                          "grads": {k: g for k, g in grads.items() if k.startswith("llm.model.layers")},
                          "grads_resampler_embed": {k: g for k, g in grads.items() if not k.startswith("llm.model.layers")}}
    write(folder / "expected.json", {"samples": samples, "train": training})
    out = {}
    with torch.no_grad():
        for name in shots:
            _, images, number = cut(shots[name])
            for k, image in enumerate(images):
                x = number(image)
                h, w = x.shape[1] // P, x.shape[2] // P
                out[f"pixel_values.{name}.{k}"] = x.reshape(3, h, P, w, P).permute(0, 2, 1, 3, 4).reshape(3, P, h * w * P).contiguous()
            out[f"resampler_out.{name}"] = torch.stack([model.resampler(*model.vpm(number(i))) for i in images])
    save_file(out, folder / "expected.safetensors")
    batch = {"samples": [dict(zip(("picture", "question", "answer"), t)) for t in talks.values()], "input_ids": [o[0] for o in lessons.values()],
             "target_tokens": [sum(t != -100 for t in o[3]) for o in lessons.values()]}

    def losses(net):
        each = [total(net, one) for one in lessons.values()]
        return sum(s for s, _ in each), sum(n for _, n in each)

    adapter(HERE / "lora_minicpmv", "minicpmv", model, r"llm\..*layers\.\d+\.self_attn\.(q_proj|k_proj|v_proj|o_proj)", ["embed_tokens", "resampler"], batch, losses, 6)


if __name__ == "__main__":
    random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    shots = pictures()
    smolvlm(shots)
    qwen(shots)
    minicpmv(shots)
