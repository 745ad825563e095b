"""The one kind of error that is shown without a traceback."""


class ExportError(Exception):
    """What is wrong, where, and what to do about it, in words for the person at the terminal."""
