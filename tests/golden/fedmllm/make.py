"""Writes scenario.json, scores.json, parsed.json and vqa.json: FedMLLM's draws, scikit-learn's scores, what the published
expression reads from answers, the VQA challenge's normaliser.

Run: python tests/golden/fedmllm/make.py VQA_EVAL
VQA_EVAL is the published evaluator in a form that has `preprocess_answer` on a class `MedVQAEval(vqa, vqaRes)`
(1xbq1/FedMLLM `vqa_eval_slake.py`, after the challenge's `vqaEval.py`); without it vqa.json stays as it is.
Made with Python 3.11, numpy 2.4, scikit-learn 1.9. Tolerance: draws none; scores 1e-12; texts none.

The draws follow the description in src/data/multimodal/scenario/reference.rs, in numpy and `random` themselves.
"""

import importlib.util
import json
import random
import re
import sys
from pathlib import Path

import numpy as np
from sklearn.metrics import f1_score, roc_auc_score

HERE = Path(__file__).parent


def labels_of(counts):
    """Labels in an uneven but fixed order: label 1 appears first."""
    rng = random.Random(5)
    labels = [label for label, n in enumerate(counts) for _ in range(n)]
    rng.shuffle(labels)
    first = labels.index(1)
    labels[0], labels[first] = labels[first], labels[0]
    return labels


def partition(labels, clients, alpha, first_only):
    np.random.seed(42)
    random.seed(42)
    groups = {}
    for i, label in enumerate(labels):
        groups.setdefault(label, []).append(i)
    shares = np.random.dirichlet([alpha] * clients, len(groups))
    held = [[] for _ in range(clients)]
    for number, (share, group) in enumerate(zip(shares, groups.values())):
        sizes = [int(x) for x in share * len(group)]
        if number == 0 or not first_only:
            for client in [c for c, size in enumerate(sizes) if size < 1]:
                donor = next(c for c, size in enumerate(sizes) if size > 1)
                sizes[client] += 1
                sizes[donor] -= 1
        sizes[-1] = len(group) - sum(sizes[:-1])
        start = 0
        for client, size in enumerate(sizes):
            held[client].extend(group[start : start + size])
            start += size
    for own in held:
        random.shuffle(own)
    return held


def missing(held, beta):
    random.seed(42)
    masks = []
    for own in held:
        mask = []
        for _ in own:
            text = random.random() < 1 - beta
            image = random.random() < 1 - beta
            mask.append([int(image), int(text)])
        masks.append(mask)
    return masks


def hybrid(held, keep):
    random.seed(42)
    np.random.seed(42)
    roles = np.random.binomial(1, keep, size=(len(held), 2)).tolist()
    masks = []
    for role, own in zip(roles, held):
        if role == [0, 0]:
            masks.append([[1, 0] if random.random() < 0.5 else [0, 1] for _ in own])
        else:
            masks.append([role for _ in own])
    return roles, masks


def cut(rows, pieces):
    random.shuffle(rows)
    size = len(rows) // pieces
    out = [rows[i * size : (i + 1) * size] for i in range(pieces)]
    out[-1].extend(rows[pieces * size :])
    return out


def medical_cross(pictures, texts, clients, images):
    random.seed(41)
    chosen = random.sample(range(clients), images)
    others = [c for c in range(clients) if c not in chosen]
    held = [[] for _ in range(clients)]
    for rows, owners in [(list(pictures), chosen), (list(texts), others)]:
        for owner, piece in zip(owners, cut(rows, len(owners))):
            held[owner] = piece
    return held


def medical_hybrid(pictures, texts, clients, keep):
    random.seed(41)
    np.random.seed(41)
    roles = np.random.binomial(1, keep, size=(clients, 2)).tolist()
    for role in roles:
        if role == [0, 0]:
            role[0 if random.random() < 0.5 else 1] = 1
    image = iter(cut(list(pictures), sum(r[0] for r in roles)))
    text = iter(cut(list(texts), sum(r[1] for r in roles)))
    held = []
    for role in roles:
        own = (next(image) if role[0] else []) + (next(text) if role[1] else [])
        if role == [1, 1]:
            random.shuffle(own)
        held.append(own)
    return held


def scenarios():
    labels = labels_of([70, 90, 40])
    out = {"labels": labels, "cases": []}
    for clients, alpha, first_only in [(10, 0.5, False), (10, 5.0, True), (4, 1.0, False)]:
        held = partition(labels, clients, alpha, first_only)
        roles, masks = hybrid(held, 0.4)
        assert [0, 0] in roles or clients < 10
        out["cases"].append(
            {
                "clients": clients,
                "alpha": alpha,
                "first_only": first_only,
                "held": held,
                "missing": missing(held, 0.4),
                "hybrid": masks,
            }
        )
    pictures, texts = range(53), range(53, 130)
    out["cross"] = [medical_cross(pictures, texts, 10, n) for n in [3, 5, 7]]
    out["medical_hybrid"] = [medical_hybrid(pictures, texts, 10, k) for k in [0.8, 0.4]]
    return out


def scores():
    rng = np.random.RandomState(3)
    out = []
    for n, classes in [(40, 2), (60, 2), (30, 2), (200, 2)]:
        labels = rng.randint(0, classes, n)
        chosen = np.where(rng.rand(n) < 0.6, labels, rng.randint(0, 3, n))
        values = np.round(labels * 0.3 + rng.rand(n), 1)  # many ties
        out.append(
            {
                "labels": labels.tolist(),
                "chosen": chosen.tolist(),
                "scores": values.tolist(),
                "auc": float(roc_auc_score(labels, values)),
                "auc_hard": float(roc_auc_score(labels, chosen)),
                "macro_f1": float(f1_score(labels, chosen, average="macro")),
            }
        )
    return out


def parsed():
    """Option read by deleting `answer` and `Answer`, the first match of the expression, `strip()`, `strip("()")`."""
    rng = random.Random(9)
    pieces = ["A", "B", "C", "G", "H", "I", "(", ")", "(", ")", " ", " ", "answer", "Answer", "a", "b", ".", ":", "\n", "is", "Ä", "x"]
    answers = ["".join(rng.choice(pieces) for _ in range(rng.randint(0, 8))) for _ in range(300)]
    out = []
    for answer in answers:
        case = {"answer": answer}
        for options, letters in [(2, "A-G"), (8, "A-H")]:
            text = answer.replace("answer", "").replace("Answer", "")
            found = re.findall(rf"[( ]*[{letters}][) ]*", text)
            letter = found[0].strip().strip("()") if found else ""
            known = list("ABCDEFGH")[:options]
            case[str(options)] = known.index(letter) if letter in known else None
        out.append(case)
    return out


TEXTS = """Yes|no.|The left lung.|x-ray|X ray|x - ray|two|None|a mass in the right lobe|3.5 cm|3. 5|1,000 cells|1, 2, 3|
left/right|left / right|(left)|don't know|dont know|it isnt|cant|I'm|Im sure|somebody'd|somebodyd|couldn'tve|yall'd've|
its own|she's|what?|What ?|T2-weighted|T2 -weighted|COPD; asthma|"quoted"|tab\tand\nline|  blanks   here |An apple, the pear|
.start|end.|e.g. this|a.b.c|0.5.|MRI_scan|[1]|@home|back\\slash|肺.|肺，心|Ü.Ä|ten thousand|nine|zero|the the the|'ow'sat|
""" + "." * 40 + "|" + "w. " * 35


def vqa(path):
    spec = importlib.util.spec_from_file_location("evaluator", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    class Nothing:
        def getQuesIds(self):
            return []

    judge = module.MedVQAEval(Nothing(), Nothing())
    texts = [t for t in TEXTS.split("|")]
    return [{"text": t, "normalised": judge.preprocess_answer(t)} for t in texts]


def write(name, value):
    (HERE / name).write_text(json.dumps(value, ensure_ascii=False) + "\n")


write("scenario.json", scenarios())
write("scores.json", scores())
write("parsed.json", parsed())
if len(sys.argv) > 1:
    write("vqa.json", vqa(sys.argv[1]))
