"""Speed of LLaVA and of CLIP's image tower beside transformers, on random models: a LLaVA of 95 million parameters and a
ViT-B/32.

    python scripts/bench_llava.py make FOLDER          # configs, weights, tokenizer, processor
    cargo bench --bench llava --no-run                 # prints the program's path
    python scripts/bench_llava.py pair FOLDER PROGRAM --threads 2 --rounds 3

`pair` runs both sides in turns and prints medians of units per second by the wall clock and by the processor's (all
threads together; on a machine that is not idle only that one can be compared, with one thread). Writing one token reads
every weight of the language model but the embedding once: the line `floor` says how often a second that can be done,
and `a new token in readings` how many such readings a token of one text takes.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

GOLDEN = pathlib.Path(__file__).parent.parent / "tests" / "golden" / "llava" / "default"
PROMPT = "USER: <image>\nWhat is shown in this image? ASSISTANT:"
NEW = 32
ROUNDS = 2


def make(folder):
    import torch
    from transformers import AutoTokenizer, CLIPConfig, CLIPModel, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

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
    small = dict(vocab_size=600, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2)
    CLIPModel(CLIPConfig(text_config=small)).float().save_pretrained(pathlib.Path(folder) / "vit-b-32")


class Clock:
    def __init__(self):
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def tell(self, name, units):
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        print(json.dumps({"name": name, "wall": units / wall, "cpu": units / cpu}), flush=True)


def measure(folder, threads):
    import numpy as np
    import torch
    from PIL import Image
    from transformers import CLIPModel, LlavaForConditionalGeneration, LlavaProcessor

    torch.set_num_threads(threads)
    model = LlavaForConditionalGeneration.from_pretrained(folder).float().eval()
    processor = LlavaProcessor.from_pretrained(folder)
    llm, head = model.model.language_model, model.lm_head
    with torch.inference_mode():
        for turn in range(ROUNDS + 1):
            for rows in (1, 8):
                whole = Clock()
                pictures = [Image.fromarray(np.zeros((240, 320, 3), np.uint8)) for _ in range(rows)]
                given = processor(images=pictures, text=[PROMPT] * rows, return_tensors="pt")
                seen = model.get_image_features(given["pixel_values"], return_dict=True).pooler_output
                ids = given["input_ids"]
                x = model.get_input_embeddings()(ids)
                x = x.masked_scatter((ids == 480)[..., None], torch.stack(list(seen)))
                clock = Clock()
                out = llm(inputs_embeds=x, use_cache=True)
                token = head(out.last_hidden_state[:, -1]).argmax(-1, keepdim=True)
                if turn:
                    clock.tell(f"prompt tokens, {rows} rows", ids.numel())
                clock = Clock()
                for _ in range(NEW):
                    out = llm(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
                    token = head(out.last_hidden_state[:, -1]).argmax(-1, keepdim=True)
                if turn:
                    clock.tell(f"new tokens, {rows} rows", rows * NEW)
                    whole.tell(f"captions, {rows} rows", rows)
        clip = CLIPModel.from_pretrained(pathlib.Path(folder) / "vit-b-32").float().eval()
        pixels = torch.zeros(32, 3, 224, 224)
        clip.get_image_features(pixel_values=pixels[:2])
        for _ in range(ROUNDS):
            clock = Clock()
            clip.get_image_features(pixel_values=pixels)
            clock.tell("ViT-B/32 images", 32)


def pair(folder, program, threads, rounds):
    ours = {**os.environ, "FEDLLAVA_BENCH_MODEL": str(folder), "FEDLLAVA_BENCH_THREADS": str(threads)}
    theirs = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    sides = {
        "ours": ([program], ours),
        "transformers": ([sys.executable, __file__, "measure", str(folder), "--threads", str(threads)], theirs),
    }
    found = {}
    for _ in range(rounds):
        for side, (command, environment) in sides.items():
            text = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
            for line in filter(lambda l: l.startswith("{"), text.splitlines()):
                line = json.loads(line)
                for clock in ("wall", "cpu"):
                    if clock in line:
                        found.setdefault(line["name"], {}).setdefault(clock, {}).setdefault(side, []).append(line[clock])
                if "peak" in line:
                    print(f"weights: file {line['file']} MiB, peak memory of loading {line['peak']} MiB")
    print(f"units per second, medians of {rounds} × {ROUNDS}, {threads} threads: ours, transformers, ratio")
    for name, clocks in found.items():
        for clock, sides in clocks.items():
            medians = {side: statistics.median(values) for side, values in sides.items()}
            a, b = medians.get("ours"), medians.get("transformers")
            tail = f"{b:.2f}  {a / b:.2f}" if a and b else "-"
            print(f"{name:45} {clock:4}  {a or 0:.2f}  {tail}")


parser = argparse.ArgumentParser()
parser.add_argument("what", choices=["make", "measure", "pair"])
parser.add_argument("folder")
parser.add_argument("program", nargs="?")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--rounds", type=int, default=3)
args = parser.parse_args()
if args.what == "make":
    make(args.folder)
elif args.what == "measure":
    measure(args.folder, args.threads)
else:
    pair(args.folder, args.program, args.threads, args.rounds)
