"""Turns Stable Diffusion checkpoints into model folders of ONNX graphs; `tools/export_model.py` is the command."""

VERSION = "0.1.0"
TOOL = "export_model.py"
