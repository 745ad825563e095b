"""Tests of the exporter, with tiny random models: `python -m unittest discover -s export/tests -t .` in tools/."""
