"""CLIP's vocabulary, for checkpoints that come without a tokenizer.

The merge list is a file of the open_clip_torch package (MIT), which nothing is imported from, so it may be installed with --no-deps.
"""

import functools
import gzip
import importlib.metadata
import json

from .errors import ExportError

PACKAGE = "open_clip_torch"
FILE = "open_clip/bpe_simple_vocab_16e6.txt.gz"
MERGES = 49152 - 256 - 2
"""Merges that CLIP uses, the first of many in the file: 49,152 entries in all before the two special tokens."""
START, END = "<|startoftext|>", "<|endoftext|>"


def byte_characters():
    """The 256 printable characters that stand for bytes, in the order of the vocabulary.

    GPT-2's: bytes that print stand for themselves, the others for the characters from 256 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(b) for b in printable] + [chr(256 + n) for n in range(256 - len(printable))]


@functools.cache
def load():
    """-> (vocabulary {token: id} of 49,408 entries, merges as "a b" lines)."""
    try:
        path = importlib.metadata.distribution(PACKAGE).locate_file(FILE)
        with gzip.open(path, "rt", encoding="utf-8") as f:
            lines = f.read().split("\n")
    except (importlib.metadata.PackageNotFoundError, FileNotFoundError):
        raise ExportError(
            f"a single-file checkpoint holds no tokenizer, and the package that has CLIP's vocabulary is not there: "
            f"pip install --no-deps {PACKAGE}==3.3.0 (see tools/requirements-export.txt), or give --config FOLDER of a model with a tokenizer/"
        ) from None
    merges = lines[1 : 1 + MERGES]
    characters = byte_characters()
    tokens = characters + [c + "</w>" for c in characters] + ["".join(m.split()) for m in merges] + [START, END]
    vocabulary = {token: n for n, token in enumerate(tokens)}
    if len(merges) != MERGES or len(vocabulary) != 49408 or vocabulary[END] != 49407:
        raise ExportError(f"{path}: not CLIP's merge list: {len(merges)} merges and {len(vocabulary)} tokens, expected {MERGES} and 49408")
    return vocabulary, merges


def write(folder, config):
    """Writes a tokenizer folder with `tokenizer_config.json` of `config`."""
    vocabulary, merges = load()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    special = {key: config[key] for key in ("bos_token", "eos_token", "unk_token", "pad_token")}
    (folder / "special_tokens_map.json").write_text(json.dumps(special) + "\n", encoding="utf-8")
