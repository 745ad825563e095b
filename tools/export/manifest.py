"""`streamdiffusion.toml`: what the folder says about itself."""

import json
import math
import re


def text(value):
    """A TOML value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} has no place in a manifest")
        # TOML wants digits on both sides of the point; Python's exponents are fine.
        return repr(value) if "." in repr(value) or "e" in repr(value) else repr(value) + ".0"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key(k)} = {text(v)}" for k, v in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(text, value)) + "]"
    raise TypeError(type(value).__name__)


def key(name):
    """A TOML key, quoted where it must be."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else text(name)


def render(tables):
    """{table name ("" for the top): {key: value}} as TOML; empty tables are left out."""
    parts = []
    for name, values in tables.items():
        values = {k: v for k, v in values.items() if v is not None}
        if values:
            lines = [f"[{name}]"] if name else []
            parts.append("\n".join(lines + [f"{key(k)} = {text(v)}" for k, v in values.items()]))
    return "\n\n".join(parts) + "\n"
