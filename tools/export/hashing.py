"""SHA-256 of files and of what went into a component."""

import functools
import hashlib
import json
import pathlib


def of_file(path):
    """Hexadecimal SHA-256 of the file at `path`."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def of_files(root, names=None):
    """{path relative to `root`, with slashes: SHA-256} of all files below `root`, or of those named, sorted."""
    paths = sorted(p for p in root.rglob("*") if p.is_file()) if names is None else [root / n for n in sorted(names)]
    return {p.relative_to(root).as_posix(): of_file(p) for p in paths}


def of_value(value):
    """Hexadecimal SHA-256 of anything JSON can tell."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


@functools.cache
def of_tool(folder=pathlib.Path(__file__).parent):
    """Hexadecimal SHA-256 of this package's sources: another tool may make another graph of the same weights."""
    return of_value({p.name: of_file(p) for p in sorted(folder.glob("*.py"))})
