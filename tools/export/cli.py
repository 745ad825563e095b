"""The command `export_model.py`."""

import os
import sys

from . import options, workspace
from .errors import ExportError

NO_MEMORY = ("can't allocate memory", "not enough memory", "bad allocation", "bad_alloc", "std::bad_alloc", "Failed to allocate memory")
"""What torch and ONNX Runtime say in errors that have no class of their own."""


def goes_on(asked):
    """A sentence on what is kept, if anything is."""
    partial = asked and workspace.partial_of(asked.out)
    return f"; what is finished is kept in {partial}, and the same command goes on from there" if partial and partial.is_dir() else ""


def main(argv=None):
    """-> exit status: 0, 1 for an error, 130 when interrupted."""
    asked = None
    try:
        asked = options.parse(sys.argv[1:] if argv is None else argv)
        run(asked)
    except ExportError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted{goes_on(asked)}", file=sys.stderr)
        return 130
    except OSError as e:
        where = f"{e.filename}: " if e.filename else ""
        print(f"error: {where}{e.strerror or e}{goes_on(asked)}", file=sys.stderr)
        return 1
    except Exception as e:
        if not isinstance(e, MemoryError) and not any(text in str(e) for text in NO_MEMORY):
            raise
        print(f"error: out of memory{goes_on(asked)}", file=sys.stderr)
        return 1
    return 0


def run(asked):
    """The export, once the command line is understood."""
    # Before anything imports the hub's client, which reads them once.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if asked.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import diffusers
        import transformers

        from . import convert
    except ImportError as e:
        raise ExportError(f"{e}: pip install -r tools/requirements-export.txt") from None
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    convert.Conversion(asked).run()
