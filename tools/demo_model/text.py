"""Prompts, tokenizer and text encoder."""

import string

import numpy as np
import torch
import torch.nn as nn
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import styles

LENGTH = 32  # tokens of every prompt, padded
WIDTH = 96  # of the embeddings
BOS, EOS = "<|startoftext|>", "<|endoftext|>"

SUBJECTS = (
    "cat dog man woman girl boy child person portrait face people crowd street city town village house building car bus "
    "train boat ship bridge river lake sea ocean beach mountain hill forest tree flower garden field sky cloud sun moon "
    "bird horse cow fish lion tiger robot astronaut knight wizard dragon castle room kitchen table chair cup coffee bottle "
    "fruit apple bread food book lamp window door hand eye hair hat dress coat guitar piano dancer football bicycle "
    "motorcycle aeroplane rocket planet galaxy desert island waterfall market cafe office computer screen camera"
).split()
ADJECTIVES = "beautiful small big old young happy sad red green blue yellow tall quiet busy lovely strange little great smiling".split()
FILLERS = (
    "masterpiece, best quality, highly detailed, 4k, 8k, hd, trending on artstation, award winning, sharp focus, "
    "intricate, very detailed, high resolution, studio, cinematic, professional, by a famous artist, ultra realistic, "
    "high quality, amazing, unreal engine, digital art, concept art, artwork, art, picture, image, style, photo, wow"
).split(", ")
LINKS = ["in the style of", "as", "as a", "as an", "turned into", "in", "style of", "drawn as", "made as", "like", "like a", "in style"]


def unknown(rng):
    """A word that means nothing: random letters, sometimes other characters."""
    letters = string.ascii_lowercase * 3 + string.digits + "éüñßøждя漢字-_'"
    return "".join(rng.choice(list(letters), int(rng.integers(2, 11))))


def subject(rng):
    word = unknown(rng) if rng.random() < 0.25 else str(rng.choice(SUBJECTS))
    if rng.random() < 0.3:
        word = f"{rng.choice(ADJECTIVES)} {word}"
    word = f"{rng.choice(['a', 'the', 'my', 'one', 'a photo of a', 'a picture of the', 'an image of a'])} {word}"
    if rng.random() < 0.15:
        word += f" {rng.choice(['in', 'on', 'with', 'near', 'and', 'under'])} {rng.choice(['a', 'the'])} {rng.choice(SUBJECTS)}"
    return word


def prompt(rng, style, modifier):
    """A random prompt for a style and a modifier name ("plain", "none")."""
    if style == "plain" and modifier == "none" and rng.random() < 0.5:
        return ""
    parts = []
    if style != "plain":
        name = str(rng.choice(styles.WORDINGS[style]))
        if rng.random() < 0.25:
            name = f"{rng.choice(['a', 'an', 'the', 'beautiful', 'detailed', 'nice'])} {name}"
        if rng.random() < 0.15:
            name += f" {rng.choice(['style', 'art', 'effect', 'picture', 'look'])}"
        roll = rng.random()
        if roll < 0.35:
            parts.append(name)
        elif roll < 0.6:
            parts.append(f"{name} of {subject(rng)}")
        elif roll < 0.85:
            parts.append(f"{subject(rng)} {rng.choice(LINKS)} {name}")
        else:
            parts += [name, subject(rng)]
    elif rng.random() < 0.8:
        parts.append(subject(rng))
    if modifier != "none":
        word = str(rng.choice(styles.MODIFIER_WORDS[modifier]))
        if parts and rng.random() < 0.3:
            parts[0] = f"{word} {parts[0]}" if rng.random() < 0.5 else f"{parts[0]} {word}"
        else:
            parts.append(word)
    for _ in range(int(rng.choice([0, 0, 0, 1, 2, 3]))):
        parts.append(unknown(rng) if rng.random() < 0.4 else str(rng.choice(FILLERS)))
    if rng.random() < 0.4:
        rng.shuffle(parts)
    text = str(rng.choice([", ", ", ", " ", ". "])).join(parts)
    return text.capitalize() if rng.random() < 0.1 else text


def build_tokenizer():
    """Byte-level BPE learnt from the wordings: known words are one token,
    any other text falls back to pieces and at last to bytes."""
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated"), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    )
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1400,
        min_frequency=1,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    lines = [w for group in (styles.WORDINGS, styles.MODIFIER_WORDS) for words in group.values() for w in words] * 4
    lines += SUBJECTS * 3 + ADJECTIVES * 3 + FILLERS * 3 + LINKS * 3 + ["the my one photo of picture an image on with near and under look effect"] * 3
    tok.train_from_iterator(lines, trainer)
    bos, eos = tok.token_to_id(BOS), tok.token_to_id(EOS)
    tok.post_processor = processors.TemplateProcessing(single=f"{BOS} $A {EOS}", special_tokens=[(BOS, bos), (EOS, eos)])
    return tok


def tokenise(tok, prompts):
    """Prompts -> int64 ids [n, LENGTH]: cut (end token kept), padded with the end token."""
    eos = tok.token_to_id(EOS)
    rows = []
    for p in prompts:
        ids = tok.encode(p).ids
        ids = ids[: LENGTH - 1] + [eos] if len(ids) > LENGTH else ids
        rows.append(ids + [eos] * (LENGTH - len(ids)))
    return torch.tensor(rows, dtype=torch.int64)


def attend(q, k, v, heads):
    """Plain attention; q [B, n, C], k and v [B, m, C] -> [B, n, C]."""
    b, n, c = q.shape
    q = q.reshape(b, n, heads, c // heads).transpose(1, 2)
    k = k.reshape(b, -1, heads, c // heads).permute(0, 2, 3, 1)
    v = v.reshape(b, -1, heads, c // heads).transpose(1, 2)
    weights = torch.softmax(q @ k * (c // heads) ** -0.5, dim=-1)
    return (weights @ v).transpose(1, 2).reshape(b, n, c)


class TextBlock(nn.Module):
    def __init__(self, width, heads=4):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        x = x + self.out(attend(q, k, v, self.heads))
        return x + self.down(torch.relu(self.up(self.norm2(x))))


class TextEncoder(nn.Module):
    """Token ids [B, LENGTH] -> embeddings [B, LENGTH, WIDTH]."""

    def __init__(self, vocabulary, width=WIDTH, layers=2):
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.place = nn.Parameter(torch.randn(LENGTH, width) * 0.02)
        nn.init.normal_(self.token.weight, std=0.3)
        self.blocks = nn.ModuleList(TextBlock(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, ids):
        x = self.token(ids) + self.place
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


if __name__ == "__main__":  # shows some prompts and their tokens
    tokenizer, draw = build_tokenizer(), np.random.default_rng(0)
    print("vocabulary", tokenizer.get_vocab_size())
    for _ in range(30):
        s, m = draw.choice(styles.STYLES), draw.choice(list(styles.MODIFIERS))
        text = prompt(draw, s, m)
        print(f"{s:12} {m:7} {text!r} {tokenizer.encode(text).tokens}")
