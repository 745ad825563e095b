"""Prompt weights and long prompts, worked out apart from the plugin's own code.

The syntax is AUTOMATIC1111's: every bracket, when it closes, multiplies the weights of the characters since it opened.
Chunks are made ComfyUI's way, word by word, and so are weighted embeddings: empty + w (plain - empty). Token ids are
those of transformers' CLIPTokenizer with the parity model's vocabulary, embeddings those of its text encoder.

Writes tests/data/prompts.json (text, then ids and weights of each chunk) and tests/data/prompts.npz (for some of the
texts, by their place in the file: embeddings of all chunks, plain and weighted, and that of the empty text).

    python tools/reference/prompt_weights.py     # needs numpy, onnxruntime, transformers
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime
from transformers import AutoTokenizer, CLIPTokenizer

DATA = Path(__file__).resolve().parents[2] / "tests" / "data"
PARITY = DATA / "parity" / "model"
LENGTH = 16
BREAK = object()

# Embeddings are written for those with True.
CASES = [
    ("", True),
    (" \n\t ", False),
    ("a neon cat", False),
    ("A  Neon\n\tCat", False),
    ("a (neon) cat", True),
    ("a ((neon)) cat", False),
    ("a [neon] [[cat]]", True),
    ("a (neon:1.3) cat", True),
    ("a ( neon cat : +1.5 ) x", False),
    ("(a:.5)(b:2.)(c:0)(d:10)", True),
    ("(a (b (c:2):0.5) d:1.5) e", False),
    ("([x]) (x [y) z] w", False),
    ("(a:abc) (b:1.2.3) (c:1e3) (d:) (e:-) f:1.3", False),
    ("(a:1:1.5)", False),
    (r"\(a\) \[b\] \\ c\d \(e:1.3\)", False),
    ("(a \\) b) c", False),
    ("\\", False),
    ("open (a [b", False),
    ("stray a) b] c:2) d", False),
    ("() [] (:1.3) a", False),
    ("in(side:1.2)word", False),
    ("(neon)(cat) (n)eon", False),
    ("cat BREAK dog", True),
    ("cat,BREAK,dog", False),
    ("catBREAK BREAKdog BREAK_ break", False),
    ("BREAK cat", False),
    ("cat BREAK", False),
    ("cat BREAK BREAK dog BREAK", False),
    ("(cat BREAK dog:1.4) x", True),
    ("oil ink neon of cat dog a oil ink neon of cat dog a", False),
    ("oil ink neon of cat dog a oil ink neon of cat dog a oil", False),
    # The long word would be cut, so it starts the second chunk.
    ("oil ink neon of cat dog zebras (quagga:1.2) zyxwvuts", True),
    # A word that just fills a chunk, and one that does not fit any.
    ("cat zyxwvutsrqponm dog", False),
    ("cat zyxwvutsrqponml dog", False),
    # Nor do these.
    ("oil ink zyxwvutsrqponmlkjihgfedcbazyxwvutsr neon", True),
    ("(abcdefghijklmnopqrstuvwxyz:0.8)(0123456789:1.2)", False),
    ("It's 1984, they'll see the NAÏVE <|endoftext|> (art:1.1)!?", False),
    ("e\u0301 \U0001f600 (\U0001f600\u00a0\u202e:1.2) \u3000x", False),
    ("(" * 20 + "deep" + ")" * 20, False),
    ("[" * 30 + "deep" + "]" * 30 + " x", False),
]


def number_after(text, colon):
    """The number and the place behind it, if `: number )` stands at `colon`."""
    i = colon + 1
    while i < len(text) and text[i].isspace():
        i += 1
    start = i
    if i < len(text) and text[i] in "+-":
        i += 1
    while i < len(text) and text[i] in ".0123456789":
        i += 1
    digits = text[start:i]
    while i < len(text) and text[i].isspace():
        i += 1
    if i == len(text) or text[i] != ")":
        return None
    try:
        return float(digits), i + 1
    except ValueError:
        return None


def parse(text):
    """Parts [text, weight] and BREAKs: each character first gets its own weight."""
    chars, weights = [], []
    opened = {"(": [], "[": []}

    def multiply(start, factor):
        for j in range(start, len(weights)):
            weights[j] *= factor

    def put(char):
        chars.append(char)
        weights.append(1.0)

    i = 0
    while i < len(text):
        c = text[i]
        step = 1
        if c == "\\":
            if i + 1 < len(text) and text[i + 1] in "()[]\\":
                put(text[i + 1])
                step = 2
            else:
                # Dropped, yet it parts words from BREAK.
                put("")
        elif c in "([":
            opened[c].append(len(weights))
            # A mark with no text, so that BREAK is recognised beside it.
            put("")
        elif c == ":" and opened["("] and (found := number_after(text, i)):
            multiply(opened["("].pop(), found[0])
            step = found[1] - i
            put("")
        elif c == ")" and opened["("]:
            multiply(opened["("].pop(), 1.1)
            put("")
        elif c == "]" and opened["["]:
            multiply(opened["["].pop(), 1 / 1.1)
            put("")
        elif text.startswith("BREAK", i) and alone(text, i):
            put(BREAK)
            step = 5
        else:
            put(c)
        i += step
    for start in opened["("]:
        multiply(start, 1.1)
    for start in opened["["]:
        multiply(start, 1 / 1.1)

    parts = []
    for char, weight in zip(chars, weights):
        if char is BREAK:
            parts.append(BREAK)
        elif char and parts and parts[-1] is not BREAK and np.isclose(parts[-1][1], weight, rtol=1e-9, atol=0):
            parts[-1][0] += char
        elif char:
            parts.append([char, weight])
    return parts


def alone(text, at):
    inside = lambda c: c.isalnum() or c == "_"
    before, after = text[:at][-1:], text[at + 5 :][:1]
    return not (before and inside(before)) and not (after and inside(after))


def chunks(text, tokenizer):
    start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    room = LENGTH - 2
    done, batch = [], []

    def close():
        ids = [start] + [t for t, _ in batch] + [end]
        weights = [1.0] + [w for _, w in batch] + [1.0]
        missing = LENGTH - len(ids)
        done.append({"ids": ids + [pad] * missing, "weights": weights + [1.0] * missing})
        batch.clear()

    for part in parse(text):
        if part is BREAK:
            close()
            continue
        for word in part[0].split():
            group = [(t, part[1]) for t in tokenizer(word, add_special_tokens=False)["input_ids"]]
            if len(group) <= room < len(batch) + len(group):
                close()
            for token in group:
                if len(batch) == room:
                    close()
                batch.append(token)
    if batch or not done:
        close()
    return done


def clip_tokenizer():
    """CLIPTokenizer from the vocabulary alone, which must agree with the folder's own tokenizer.json."""
    model = json.loads((PARITY / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    clip = CLIPTokenizer(vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]])
    own = AutoTokenizer.from_pretrained(str(PARITY / "tokenizer"))
    for text, _ in CASES:
        ids = [t(text, add_special_tokens=False)["input_ids"] for t in (clip, own)]
        assert ids[0] == ids[1], (text, ids)
    assert (clip.bos_token_id, clip.eos_token_id, clip.pad_token_id) == (524, 525, 525)
    return clip


tokenizer = clip_tokenizer()
encoder = onnxruntime.InferenceSession(str(PARITY / "text_encoder" / "model.onnx"), providers=["CPUExecutionProvider"])
port = encoder.get_inputs()[0]


def embed(rows):
    dtype = np.int64 if "int64" in port.type else np.int32
    return encoder.run(None, {port.name: np.array(rows, dtype)})[0]


empty = embed([chunks("", tokenizer)[0]["ids"]])[0]
arrays = {"empty": empty}
lines = []
for i, (text, wanted) in enumerate(CASES):
    found = chunks(text, tokenizer)
    for chunk in found:
        chunk["weights"] = [float(f"{w:.9g}") for w in chunk["weights"]]
    lines.append(json.dumps({"text": text, "chunks": found}))
    if wanted:
        plain = np.concatenate([embed([chunk["ids"]]) for chunk in found])
        weights = np.array([chunk["weights"] for chunk in found])[..., None]
        arrays[f"{i}.plain"] = plain
        arrays[f"{i}.weighted"] = (empty + weights * (plain.astype(np.float64) - empty)).astype(np.float32)
(DATA / "prompts.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")
np.savez_compressed(DATA / "prompts.npz", **arrays)
print(len(CASES), "texts,", max(len(json.loads(line)["chunks"]) for line in lines), "chunks at most")
