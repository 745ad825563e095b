"""The command `export_model.py`."""

import os
import sys

from . import options
from .errors import ExportError


def main(argv=None):
    """-> exit status: 0, 1 for an error, 130 when interrupted."""
    try:
        asked = options.parse(sys.argv[1:] if argv is None else argv)
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
    except ExportError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what is finished is kept in OUT.partial, and the same command goes on from there", file=sys.stderr)
        return 130
    return 0
