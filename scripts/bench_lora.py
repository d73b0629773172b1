"""A step of LoRA beside transformers and PEFT, on the random LLaVA of 95 million parameters of bench_llava.py.

    python scripts/bench_llava.py make FOLDER
    cargo bench --bench lora --no-run                  # prints the program's path
    python scripts/bench_lora.py pair FOLDER PROGRAM --threads 2 --rounds 3

Four samples with a picture each, rank 8 on the attention of the language model, AdamW. `pair` runs the sides in turns and
prints medians of samples per second by the wall clock and by the processor's, and the most resident memory. Both sides
with all activations kept and with layers computed again on the way back.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

PROMPT = "USER: <image>\nIs the content hateful? (A) no (B) yes. The best answer is ASSISTANT:"
ANSWER = " (A) no, it is a picture of a dog</s>"
ROWS, STEPS = 4, 3


def measure(folder, threads, keep):
    import numpy as np
    import torch
    from peft import LoraConfig, get_peft_model
    from PIL import Image
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    torch.set_num_threads(threads)
    model = LlavaForConditionalGeneration.from_pretrained(folder).float()
    processor = LlavaProcessor.from_pretrained(folder)
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=8, target_modules=r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj)"))
    if not keep:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    model.train()
    pictures = [Image.fromarray(np.zeros((240, 320, 3), np.uint8)) for _ in range(ROWS)]
    given = processor(images=pictures, text=[PROMPT + ANSWER] * ROWS, return_tensors="pt")
    asked = processor(images=pictures[:1], text=[PROMPT], return_tensors="pt")["input_ids"].shape[1]
    labels = given["input_ids"].clone()
    labels[:, :asked] = -100
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for step in range(STEPS + 1):
        cpu, wall = time.process_time(), time.perf_counter()
        optimiser.zero_grad()
        model(**given, labels=labels).loss.backward()
        optimiser.step()
        if step:
            print(json.dumps({"name": "LoRA samples", "wall": ROWS / (time.perf_counter() - wall), "cpu": ROWS / (time.process_time() - cpu)}), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"name": "memory, MiB", "peak": peak, "tokens": labels.shape[1]}), flush=True)


def pair(folder, program, threads, rounds):
    base = {**os.environ, "FEDLLAVA_BENCH_MODEL": str(folder), "FEDLLAVA_BENCH_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    theirs = [sys.executable, __file__, "measure", str(folder), "--threads", str(threads)]
    sides = {
        "ours, kept": ([program], {**base, "FEDLLAVA_BENCH_KEEP": "1"}),
        "PEFT, kept": ([*theirs, "--keep"], base),
        "ours, computed again": ([program], base),
        "PEFT, computed again": (theirs, base),
    }
    found = {}
    for _ in range(rounds):
        for side, (command, environment) in sides.items():
            text = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
            for line in map(json.loads, filter(lambda l: l.startswith("{"), text.splitlines())):
                for clock in ("wall", "cpu", "peak", "estimate", "tokens"):
                    if clock in line:
                        found.setdefault(side, {}).setdefault(clock, []).append(line[clock])
    print(f"medians of {rounds} × {STEPS}, {threads} threads: samples/s wall, samples/s processor, MiB")
    for side, values in found.items():
        print(side, {k: round(statistics.median(v), 2) for k, v in values.items()})


parser = argparse.ArgumentParser()
parser.add_argument("what", choices=["measure", "pair"])
parser.add_argument("folder")
parser.add_argument("program", nargs="?")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--keep", action="store_true")
args = parser.parse_args()
if args.what == "measure":
    measure(args.folder, args.threads, args.keep)
else:
    pair(args.folder, args.program, args.threads, args.rounds)
