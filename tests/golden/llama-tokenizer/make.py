"""Golden tokens of Llama-style SentencePiece BPE tokenizers.

    python make.py [FOLDER]      # FOLDER holds Llama-2's tokenizer.model, which is not stored here

Writes
  tiny.model       a SentencePiece BPE model with byte fallback, trained here on this text as Llama-2's was;
  tiny.json        its expected ids and texts by the sentencepiece library ("plain"); with <image> and the control pieces
                   cut out of the text first and sentencepiece on the parts, a dummy space before each part
                   ("marked-legacy") or before the first alone ("marked-modern"); and by the tokenizers saved below;
  legacy/, modern/ that tokenizer as transformers saves it (tokenizer.json, tokenizer_config.json): its Metaspace puts
                   no space before a text that begins with one, where sentencepiece does;
  llama2.json      expected ids of Llama-2's own model for the same texts (ids only).
The tests compare exactly.
"""

import json
import pathlib
import re
import shutil
import sys
import tempfile

import sentencepiece as spm
import transformers
from sentencepiece import sentencepiece_model_pb2
from transformers import AutoTokenizer

HERE = pathlib.Path(__file__).parent
TEXTS = [
    "", " ", "  ", "a", " a", "a ", "Hello, world!", "  two  spaces   three", "tab\tand\nnewline\n\n", "\n", " \n \n",
    "naïve café – “quotes” … ½", "中文字符 和 English", "日本語テキスト", "русский текст", "العربية", "🙂👩‍👩‍👧 emoji 🏳️‍🌈", "\u2581already\u2581escaped",
    "e\u0301 decomposed", "zero\u200bwidth \u00a0nbsp", "1234567890 3.14159 1e-5", "CamelCaseWordsAndACRONYMs", "aaaaaaaaaaaaaaaaaaaaaaaa",
    "<0x0A> is not a byte", "</s> in text", "<s><unk>", "the the the the", "x" * 70, "\x00\x01\x7f", "\U0010ffff\ufeff",
    "USER: What is shown in this image? ASSISTANT:", "https://example.org/a?b=c&d=%20#e", "ﬁ ligature ① ﷽", "\r\nwindows\r\n",
]
MARKED = ["USER: <image>\nWhat is it? ASSISTANT:", "<image>", "a<image>b", "a <image> b", "<image><image>\n", "yes</s>USER: more", "<s>twice", " <image>"]
SCENES = [f"{n} {c} {s} {p} {t}." for n in ("A", "The small", "One large", "This") for c in ("red", "green", "blue", "yellow")
          for s in ("circle", "square", "triangle", "star") for p in ("stands on", "is beside", "lies under") for t in ("a table", "the grass", "two boxes")]
CORPUS = SCENES + ["USER: What is shown in this image? ASSISTANT: A photograph.", "Describe the image in detail.", "naïve café 中文 русский",
                   "Once upon a time there was a little girl.  She liked to play.", "1234567890 numbers 3.14"] * 4


def plain(sp):
    rows = []
    for t in TEXTS:
        ids = sp.encode(t)
        rows.append({"text": t, "ids": ids, "decoded": sp.decode(ids)})
    return rows


def marked(sp, bare, legacy):
    rows = []
    marks = {"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": 480, "<pad>": 481}
    for t in MARKED:
        ids, first = [1], True
        for part in re.split("(" + "|".join(marks) + ")", t):
            if part in marks:
                ids.append(marks[part])
                first = False
            elif part:
                ids += (sp if first or legacy else bare).encode(part)
                first = False
        rows.append({"text": t, "ids": ids})
    return rows


corpus = HERE / "corpus.txt"
corpus.write_text("\n".join(CORPUS))
spm.SentencePieceTrainer.train(input=str(corpus), model_prefix=str(HERE / "tiny"), model_type="bpe", vocab_size=480, byte_fallback=True,
                               character_coverage=0.99, normalization_rule_name="identity", remove_extra_whitespaces=False,
                               add_dummy_prefix=True, split_digits=True, allow_whitespace_only_pieces=True, minloglevel=2)
corpus.unlink()
(HERE / "tiny.vocab").unlink()
sp = spm.SentencePieceProcessor(model_file=str(HERE / "tiny.model"))
out = {"versions": {"sentencepiece": spm.__version__, "transformers": transformers.__version__}, "plain": plain(sp)}
proto = sentencepiece_model_pb2.ModelProto.FromString((HERE / "tiny.model").read_bytes())
proto.normalizer_spec.add_dummy_prefix = False
bare = spm.SentencePieceProcessor(model_proto=proto.SerializeToString())
out["marked-legacy"], out["marked-modern"] = marked(sp, bare, True), marked(sp, bare, False)
for name, legacy in (("legacy", True), ("modern", False)):
    with tempfile.TemporaryDirectory() as tmp:
        shutil.copy(HERE / "tiny.model", pathlib.Path(tmp) / "tokenizer.model")
        config = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy, "add_bos_token": True, "add_eos_token": False,
                  "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        (pathlib.Path(tmp) / "tokenizer_config.json").write_text(json.dumps(config))
        tok = AutoTokenizer.from_pretrained(tmp)
    tok.add_tokens(["<image>", "<pad>"], special_tokens=True)
    tok.save_pretrained(HERE / name)
    out[name] = [{"text": t, "ids": tok(t)["input_ids"], "decoded": tok.decode(tok(t)["input_ids"], skip_special_tokens=True, clean_up_tokenization_spaces=False)}
                 for t in MARKED + TEXTS]
(HERE / "tiny.json").write_text(json.dumps(out, ensure_ascii=True, indent=0) + "\n")
if len(sys.argv) > 1:
    sp = spm.SentencePieceProcessor(model_file=str(pathlib.Path(sys.argv[1]) / "tokenizer.model"))
    rows = plain(sp)
    (HERE / "llama2.json").write_text(json.dumps({"plain": rows}, ensure_ascii=True) + "\n")
