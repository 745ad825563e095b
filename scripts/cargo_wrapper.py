#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Runs cargo for meson.build: builds the plugin and its program, or runs the tests."""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

LIBRARY = "libgststreamdiffusion.so"
PROGRAM = "streamdiffusion"


def write_depfile(cargo_depfile: Path, depfile: Path, output: str) -> None:
    """Cargo's depfile names its own file as what depends on the sources; meson's must name
    the target of the build file, or Ninja would not run cargo again when a source changes."""
    _, _, sources = cargo_depfile.read_text().partition(": ")
    depfile.write_text(f"{output}: {sources}")


def build(args: argparse.Namespace) -> None:
    command = ["cargo", "build", "--release", "--lib", "--bin", PROGRAM]
    subprocess.run([*command, *args.cargo_options], cwd=args.source, check=True)
    built = args.target / "release"
    library, program = args.output
    shutil.copy2(built / LIBRARY, library)
    shutil.copy2(built / PROGRAM, program)
    # Cargo's for the program lists the library's sources too.
    write_depfile((built / PROGRAM).with_suffix(".d"), args.depfile, os.path.relpath(library))


def test(args: argparse.Namespace) -> None:
    environment = dict(os.environ)
    fetched = args.source / ".onnxruntime"
    if fetched.is_dir():
        environment.setdefault("ORT_DYLIB_PATH", str(fetched))
    command = ["cargo", "test", *args.cargo_options]
    subprocess.run(command, cwd=args.source, check=True, env=environment)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["build", "test"])
    parser.add_argument("--source", type=Path, required=True, help="where Cargo.toml is")
    parser.add_argument("--target", type=Path, required=True, help="cargo's target folder")
    parser.add_argument("--output", type=Path, nargs=2, help="where to put the plugin and the program")
    parser.add_argument("--depfile", type=Path, help="where to write what it depends on")
    args = parser.parse_args()
    args.cargo_options = ["--locked", "--target-dir", str(args.target)]
    try:
        {"build": build, "test": test}[args.command](args)
    except FileNotFoundError as error:
        print(f"{error.filename} is missing; is cargo in PATH?", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        return error.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
