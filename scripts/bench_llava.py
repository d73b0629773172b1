"""Speed of LLaVA beside transformers: makes a random model of 95 million parameters and times transformers on it.

    python scripts/bench_llava.py make FOLDER     # config, weights, tokenizer, processor
    python scripts/bench_llava.py time FOLDER     # transformers: seconds per image, prompt and new tokens per second
    FEDLLAVA_BENCH_MODEL=FOLDER cargo bench --bench llava

Run the two in turns on an idle machine and compare medians. Writing one token reads every weight of the language model
once: its size in bytes over the machine's memory bandwidth is the floor of a token's time.
"""

import pathlib
import statistics
import sys
import time

import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

GOLDEN = pathlib.Path(__file__).parent.parent / "tests" / "golden" / "llava" / "default"
PROMPT = "USER: <image>\nWhat is shown in this image? ASSISTANT:"
NEW = 64


def make(folder):
    torch.manual_seed(0)
    text = dict(model_type="llama", vocab_size=8000, hidden_size=768, intermediate_size=2048, num_hidden_layers=10,
                num_attention_heads=12, num_key_value_heads=12, max_position_embeddings=1024, eos_token_id=2, bos_token_id=1, pad_token_id=481)
    vision = dict(model_type="clip_vision_model", hidden_size=384, intermediate_size=1536, num_hidden_layers=6,
                  num_attention_heads=6, image_size=224, patch_size=16, projection_dim=384)
    model = LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision, image_token_index=480)).float()
    model.save_pretrained(folder)
    image = CLIPImageProcessorPil(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    LlavaProcessor(image, AutoTokenizer.from_pretrained(GOLDEN), patch_size=16, vision_feature_select_strategy="default",
                   num_additional_image_tokens=1).save_pretrained(folder)


def measure(folder, rounds=5):
    model = LlavaForConditionalGeneration.from_pretrained(folder).float().eval()
    one = LlavaProcessor.from_pretrained(folder)(images=[Image.fromarray(np.zeros((240, 320, 3), np.uint8))], text=[PROMPT], return_tensors="pt")
    llm, head = model.model.language_model, model.lm_head
    rates = {}
    note = lambda name, value: rates.setdefault(name, []).append(value)
    with torch.inference_mode():
        for _ in range(rounds):
            start = time.perf_counter()
            seen = model.get_image_features(one["pixel_values"], return_dict=True).pooler_output[0]
            note("seconds an image", time.perf_counter() - start)
            for rows in (1, 8):
                ids = one["input_ids"].repeat(rows, 1)
                x = model.get_input_embeddings()(ids)
                x = x.masked_scatter((ids == 480)[..., None], seen.repeat(rows, 1, 1))
                start = time.perf_counter()
                out = llm(inputs_embeds=x, use_cache=True)
                token = head(out.last_hidden_state[:, -1]).argmax(-1, keepdim=True)
                note(f"prompt tokens/s, {rows} rows", ids.numel() / (time.perf_counter() - start))
                start = time.perf_counter()
                for _ in range(NEW):
                    out = llm(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
                    token = head(out.last_hidden_state[:, -1]).argmax(-1, keepdim=True)
                note(f"new tokens/s, {rows} rows", rows * NEW / (time.perf_counter() - start))
    for name, values in rates.items():
        print(f"{name}: median {statistics.median(values):.3f} of {[round(v, 3) for v in sorted(values)]}")


{"make": make, "time": measure}[sys.argv[1]](sys.argv[2])
