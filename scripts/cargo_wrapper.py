#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Runs cargo for meson.build: builds the plugin and its program, writes the program's documents, or runs the tests."""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

LIBRARY = "libgststreamdiffusion.so"
PROGRAM = "streamdiffusion"
# Shells, and what they call a file with completions for the program.
COMPLETIONS = {"bash": PROGRAM, "zsh": f"_{PROGRAM}", "fish": f"{PROGRAM}.fish"}
# Folders that scripts of the clone fetch libraries into, and the variables that name them.
FETCHED = {".onnxruntime": "ORT_DYLIB_PATH", ".tensorrt": "TENSORRT_LIBRARY_PATH"}


def write_depfile(cargo_depfile: Path, depfile: Path, output: str) -> None:
    """Cargo's depfile names its own file as what depends on the sources; meson's must name
    the target of the build file, or Ninja would not run cargo again when a source changes."""
    _, _, sources = cargo_depfile.read_text().partition(": ")
    depfile.write_text(f"{output}: {sources}")


def build(args: argparse.Namespace) -> None:
    command = ["cargo", "build", "--lib", "--bin", PROGRAM]
    subprocess.run([*command, *args.cargo_options], cwd=args.source, check=True)
    # The profile "dev" has a folder of another name, for the sake of old habits.
    built = args.target / ("debug" if args.profile == "dev" else args.profile)
    library, program = args.output
    shutil.copy2(built / LIBRARY, library)
    shutil.copy2(built / PROGRAM, program)
    # Cargo's for the program lists the library's sources too.
    write_depfile((built / PROGRAM).with_suffix(".d"), args.depfile, os.path.relpath(library))


def document(args: argparse.Namespace) -> None:
    """Writes the manual pages and the completions, all into the folder of the first output."""
    program, folder = args.program.resolve(), args.output[0].parent
    pages = folder / "manual"
    shutil.rmtree(pages, ignore_errors=True)
    subprocess.run([program, "manual", "--out", pages], check=True)
    written = []
    for page in pages.iterdir():
        written.append(page.replace(folder / page.name))
    pages.rmdir()
    for shell, name in COMPLETIONS.items():
        with (folder / name).open("wb") as out:
            subprocess.run([program, "completions", shell], stdout=out, check=True)
        written.append(folder / name)
    wanted = {output.name for output in args.output}
    names = {path.name for path in written}
    if names != wanted:
        changed = ", ".join(sorted(names ^ wanted))
        sys.exit(f"meson.build lists other documents than the program has; they differ in {changed}")


def test(args: argparse.Namespace) -> None:
    environment = dict(os.environ)
    for name, variable in FETCHED.items():
        if (args.source / name).is_dir():
            environment.setdefault(variable, str(args.source / name))
    # Of its own: the tests' plugins shall not get into the user's.
    environment.setdefault("GST_REGISTRY", str(args.target / "gst-registry-test.bin"))
    # Some tests start programs that load the plugin, which building the tests alone does not bring up to date.
    for command in (["cargo", "build"], ["cargo", "test", "--no-fail-fast"]):
        subprocess.run([*command, *args.cargo_options], cwd=args.source, check=True, env=environment)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = {"build": build, "document": document, "test": test}
    parser.add_argument("command", choices=commands)
    parser.add_argument("--source", type=Path, help="where Cargo.toml is")
    parser.add_argument("--target", type=Path, help="cargo's target folder")
    parser.add_argument("--profile", default="release", help="cargo's profile")
    parser.add_argument("--features", default="", help="cargo's features beside the default ones")
    parser.add_argument("--output", type=Path, nargs="+", help="where to put what is built, one by one")
    parser.add_argument("--depfile", type=Path, help="where to write what it depends on")
    parser.add_argument("--program", type=Path, help="the program whose documents are written")
    args = parser.parse_args()
    args.cargo_options = ["--locked", "--target-dir", str(args.target), "--features", args.features]
    if args.command == "build":
        args.cargo_options += ["--profile", args.profile]
    try:
        commands[args.command](args)
    except FileNotFoundError as error:
        print(f"{error.filename} is missing; is cargo in PATH?", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        return error.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
