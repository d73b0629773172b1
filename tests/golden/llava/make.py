"""Small random LLaVAs saved by transformers, and what transformers computes with them.

    python make.py

Each folder: config.json, generation_config.json and model.safetensors as `save_pretrained` writes them; `default` also
the processor's files (tokenizer, processor_config.json, chat template). a.png (37x23) and b.png (30x41) are drawn here.
expected.safetensors of a folder:
  pixels (2, 3, S, S) of a.png, b.png by the PIL image processor; features (2, N, D) after the projector;
  ids (1, T) of one prompt with the image tokens expanded; logits (2, T, V) for each image under that prompt;
  loss (2,) and labels: next-token loss on the answer's tokens (labels -100 elsewhere) for each image;
  greedy (2, 12): new tokens for each image.
prompts.json: what the chat template of llava-hf/llava-1.5-7b-hf gives for conversations, by jinja.
Tolerances in the test: logits and features 1e-4 absolute, pixels 1e-6, tokens and prompts exact.
"""

import json
import pathlib
import sys

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoTokenizer, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

HERE = pathlib.Path(__file__).parent
TEMPLATE = ("{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
            "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
            "{# Render all text next #}{% if message['role'] != 'assistant' %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
            "{{ content['text'] + ' '}}{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{% generation %}"
            "{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}")
TEXT = dict(model_type="llama", vocab_size=484, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=128, initializer_range=0.2, eos_token_id=2, bos_token_id=1, pad_token_id=481)
VISION = dict(model_type="clip_vision_model", hidden_size=12, intermediate_size=20, num_hidden_layers=3, num_attention_heads=2,
              image_size=14, patch_size=4, projection_dim=8)
MODELS = {
    "default": dict(text_config=TEXT, vision_config=VISION),
    "full-gqa-tied": dict(text_config=TEXT | dict(num_key_value_heads=2, tie_word_embeddings=True, rms_norm_eps=1e-5),
                          vision_config=VISION | dict(image_size=16, patch_size=8, hidden_act="gelu"), vision_feature_layer=-1,
                          vision_feature_select_strategy="full", multimodal_projector_bias=False),
    "two-layers-linear": dict(text_config=TEXT | dict(num_key_value_heads=1, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}),
                              vision_config=VISION | dict(image_size=15, patch_size=5), vision_feature_layer=[1, -2],
                              projector_hidden_act="gelu"),
}


def pictures():
    for name, (w, h) in {"a": (37, 23), "b": (30, 41)}.items():
        y, x = np.mgrid[:h, :w]
        rgb = np.stack([255 * x / w, 255 * y / h, 127 + 127 * np.sin(x * y / 9 + len(name) * (name == "b"))], -1)
        if name == "b":
            rgb[8:20, 5:17] = [250, 20, 30]
        Image.fromarray(rgb.astype(np.uint8)).save(HERE / f"{name}.png")
    return [Image.open(HERE / f"{n}.png").convert("RGB") for n in "ab"]


def processor(config):
    side = config.vision_config.image_size
    image = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    tokenizer = AutoTokenizer.from_pretrained(HERE.parent / "llama-tokenizer" / "modern")
    tokenizer.pad_token = "<pad>"
    return LlavaProcessor(image, tokenizer, patch_size=config.vision_config.patch_size, chat_template=TEMPLATE,
                          vision_feature_select_strategy=config.vision_feature_select_strategy, num_additional_image_tokens=1)


def turn(role, text, images=0):
    return {"role": role, "content": [{"type": "image"}] * images + [{"type": "text", "text": text}]}


def prompts(proc):
    cases = [
        ([turn("user", "What is it?", 1)], True),
        ([turn("system", "A chat between a curious human and an artificial intelligence assistant."), turn("user", "What is it?", 1)], True),
        ([turn("user", "What is it?", 1), turn("assistant", "A red star."), turn("user", "And beside it?")], True),
        ([turn("user", "Name both.", 2), turn("assistant", "Two boxes.")], False),
        ([turn("user", "Only text.")], True),
    ]
    rows = [{"messages": [{"role": m["role"], "images": sum(c["type"] == "image" for c in m["content"]),
                           "text": m["content"][-1]["text"]} for m in messages],
             "open": opened, "prompt": proc.apply_chat_template(messages, add_generation_prompt=opened)} for messages, opened in cases]
    (HERE / "prompts.json").write_text(json.dumps(rows, indent=1) + "\n")


images = pictures()
for name, shape in MODELS.items():
    torch.manual_seed(0)
    config = LlavaConfig(image_token_index=480, **shape)
    model = LlavaForConditionalGeneration(config).float().eval()
    for p in model.parameters():
        p.data = 0.3 * torch.randn_like(p) + (p.data if p.dim() == 1 else 0)
    model.generation_config = transformers.GenerationConfig(eos_token_id=2, bos_token_id=1, pad_token_id=481)
    folder = HERE / name
    model.save_pretrained(folder)
    proc = processor(config)
    if name == "default":
        proc.save_pretrained(folder)
        prompts(proc)
    prompt = proc.apply_chat_template([turn("user", "What is shown in this image?", 1)], add_generation_prompt=True)
    answer = " A red star stands on a table.</s>"
    out = {}
    with torch.no_grad():
        both = proc(images=images, text=[prompt] * 2, return_tensors="pt")
        full = proc(images=images, text=[prompt + answer] * 2, return_tensors="pt")
        out["pixels"], out["ids"] = both["pixel_values"], both["input_ids"][:1]
        out["features"] = torch.stack(list(model.get_image_features(both["pixel_values"], return_dict=True).pooler_output))
        out["logits"] = model(**both).logits
        labels = full["input_ids"].clone()
        labels[:, :both["input_ids"].shape[1]] = -100
        out["labels"], out["full_ids"] = labels[:1], full["input_ids"][:1]
        out["loss"] = torch.stack([model(**{k: v[i:i + 1] for k, v in full.items()}, labels=labels[i:i + 1]).loss for i in range(2)])
        new = model.generate(**both, max_new_tokens=12, do_sample=False, eos_token_id=None)
        out["greedy"] = new[:, both["input_ids"].shape[1]:]
    meta = {"torch": torch.__version__, "transformers": transformers.__version__, "python": sys.version.split()[0]}
    save_file({k: v.contiguous().clone() for k, v in out.items()}, folder / "expected.safetensors", metadata=meta)
    print(name, out["ids"].shape, out["greedy"].tolist(), out["loss"].tolist(), float(out["logits"].abs().max()))
