"""Random models and exports that several tests use, made once."""

import atexit
import contextlib
import functools
import io
import pathlib
import shutil
import tempfile
import unittest

from export import cli, convert, options, random_model

SCRATCH = pathlib.Path(tempfile.mkdtemp(prefix="export-tests-"))
atexit.register(shutil.rmtree, SCRATCH, ignore_errors=True)


@functools.cache
def model(kind, prediction=None):
    """A tiny random diffusers folder."""
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    return random_model.write(kind, SCRATCH / f"{kind}-{prediction}", small=True, prediction=prediction)


def asked(source, out, *arguments):
    """Options as from the command line."""
    return options.parse([str(source), str(out), *map(str, arguments)])


def export(source, out, *arguments):
    """Runs an export in this process. -> the Conversion and what it printed."""
    heard = io.StringIO()
    conversion = convert.Conversion(asked(source, out, *arguments))
    with contextlib.redirect_stdout(heard), contextlib.redirect_stderr(io.StringIO()):
        conversion.run()
    return conversion, heard.getvalue()


@functools.cache
def exported(kind, *arguments, prediction=None):
    """The model folder of a tiny random model, for reading only."""
    out = SCRATCH / "-".join(["out", kind, *(a.strip("-").replace("/", "_") for a in arguments)])
    export(model(kind, prediction), out, *arguments)
    return out


class Case(unittest.TestCase):
    """With a folder of its own, and a way to run the command and read its error."""

    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(dir=SCRATCH))

    def error(self, *arguments):
        """The message of a command that must fail. Exceptions that the command lets through fail the test."""
        heard = io.StringIO()
        with contextlib.redirect_stderr(heard), contextlib.redirect_stdout(io.StringIO()):
            try:
                status = cli.main([str(a) for a in arguments])
            except SystemExit as e:  # argparse
                status = e.code
        self.assertIn(status, (1, 2))
        self.assertRegex(heard.getvalue(), r"(?m)^(error: |export_model\.py: error: )")
        return heard.getvalue()
