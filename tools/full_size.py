#!/usr/bin/env python3
"""Full-size architectures, from random weights to a frame: `python tools/full_size.py`, or `scripts/test --slow`.

For each architecture a diffusers folder with random weights is made, exported with tools/export_model.py, looked into
with `streamdiffusion inspect`, measured with `streamdiffusion bench` and run over one picture with `streamdiffusion run`;
then its U-Net in two parts is compared with the whole one (tests/full_size.rs). What each step took is printed as a
table in the end. Weights of published models are not needed: their time and memory do not depend on the values.

With --engines, TensorRT engines are built instead: of each architecture's U-Net, in f16 and with random weights, as tools/export/random_graphs.py
writes it without comparing it with torch, and again time and memory are printed. No GPU is needed, only the program
with the feature `tensorrt`, and TensorRT for RTX (TENSORRT_LIBRARY_PATH).

Needs the packages of tools/requirements-export.txt in the Python that runs it, ONNX Runtime (ORT_DYLIB_PATH), cargo, and
the program (cargo build --release). A failure in one architecture leaves the others alone; with --keep, what was made
stays, and the next run goes on after the last step that went well.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import re
import shutil
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One model: `kind` of tools/export/random_model.py, type of the exported graphs, and what it needs in GB (10⁹ bytes), to make frames and to build an engine."""

    kind: str
    dtype: str
    disk: float
    memory: float
    engine_disk: float
    engine_memory: float


ARCHITECTURES = {
    "sd-turbo": Architecture("sd-turbo", "f32", disk=9, memory=9, engine_disk=5, engine_memory=7),
    "sd15": Architecture("sd15", "f32", disk=8, memory=9, engine_disk=5, engine_memory=7),
    "sdxl-turbo": Architecture("sdxl-turbo", "f16", disk=16, memory=19, engine_disk=13, engine_memory=19),
}


class Failed(Exception):
    """A step went wrong; the message is for people."""


def available_memory():
    """Bytes that new programs can have, or None where the system does not tell."""
    try:
        for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def machine():
    """Processor and number of cores, in words."""
    name = platform.machine()
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


def size_of(folder):
    """Bytes of all files in a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def gigabytes(size):
    """Bytes as a number of GB (10⁹)."""
    return f"{size / 1e9:.1f} GB" if size >= 5e7 else f"{size / 1e6:.1f} MB"


def document(printed):
    """The JSON object in what a program printed, between warnings of libraries."""
    try:
        return json.loads(printed[printed.index("{\n") : printed.rindex("}") + 1])
    except ValueError as e:
        raise Failed(f"expected a JSON object, found {printed[:500]!r} ({e})") from None


def tail(path, lines=15):
    """The end of a log, without what progress bars overwrote."""
    text = path.read_text(errors="replace")
    text = [line.rpartition("\r")[2] for line in text.split("\n")]
    return "\n".join("    " + line for line in text[-lines:])


class Run:
    """One architecture on its way. `notes` is what the finished steps found out, kept in a file."""

    def __init__(self, name, options):
        self.name, self.options = name, options
        self.architecture = ARCHITECTURES[name]
        self.folder = options.work / (f"{name}-engine" if options.engines else name)
        self.source, self.model, self.picture = (self.folder / n for n in ("source", "model", "out.png"))
        self.given = options.models is not None and (options.models / name / "model_index.json").exists()
        if self.given:
            self.model = options.models / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = self.folder / "notes.json"
        self.notes, self.last = {}, None
        # What is left of a run with other settings, or without --keep, is none of ours.
        self.settings = {"architecture": dataclasses.asdict(self.architecture), "size": options.size, "tiny": options.tiny, "engines": options.engines, "model": str(self.model)}
        if self.file.exists():
            notes = json.loads(self.file.read_text())
            there = self.source if not (options.engines or "export" in notes) else self.model
            if options.keep and notes.get("settings") == self.settings and there.is_dir():
                self.notes = notes
        if not self.notes:
            shutil.rmtree(self.folder)
            self.folder.mkdir()
            self.notes = {"settings": self.settings}

    def say(self, text):
        print(f"{self.name}: {text}", flush=True)

    def step(self, name, command, environment=None):
        """Runs `command`, unless an earlier run did so; notes its time and its peak memory. -> what it printed."""
        log, self.last = self.folder / f"{name}.log", name
        if name in self.notes:
            self.say(f"{name}: done before")
            return log.read_text(errors="replace")
        began = time.monotonic()
        with open(log, "wb") as output:
            child = subprocess.Popen(
                [str(c) for c in command], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env={**os.environ, **(environment or {})}
            )
            try:
                # Unlike wait(), this also tells the most memory the child had.
                _, status, usage = os.wait4(child.pid, 0)
            except BaseException:
                child.send_signal(signal.SIGINT)
                child.wait()
                raise
        child.returncode = os.waitstatus_to_exitcode(status)
        took, peak = time.monotonic() - began, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        if child.returncode:
            why = f"was killed by signal {-child.returncode}" if child.returncode < 0 else f"ended with status {child.returncode}"
            if child.returncode == -signal.SIGKILL:
                why += ", as the system does when memory runs out"
            raise Failed(f"{name} {why} after {took:.0f} s; the end of {log}:\n{tail(log)}")
        self.note(name, seconds=round(took, 2), processor=round(usage.ru_utime + usage.ru_stime, 2), memory=peak)
        self.say(f"{name}: {took:.1f} s, at most {gigabytes(peak)} of memory")
        return log.read_text(errors="replace")

    def note(self, name, **facts):
        self.notes[name] = {**self.notes.get(name, {}), **facts}
        self.file.write_text(json.dumps(self.notes, indent=2) + "\n")

    def forget(self):
        """Has the step that went wrong run again the next time."""
        self.notes.pop(self.last, None)
        self.file.write_text(json.dumps(self.notes, indent=2) + "\n")

    def check_room(self, disk, needed):
        """An error before anything is begun where disk or memory, in GB, are too small for the steps that are left."""
        if self.options.tiny or self.options.no_checks:
            return
        free = shutil.disk_usage(self.folder).free
        left = 0 if self.given else disk * 1e9 - size_of(self.folder)
        if free < left:
            raise Failed(f"{gigabytes(left)} of disk are needed in {self.folder}, {gigabytes(free)} are free")
        memory = available_memory()
        if memory is not None and memory < needed * 1e9:
            raise Failed(f"{needed:.1f} GB of memory are needed, {gigabytes(memory)} are available (--no-checks tries all the same)")

    def made_by(self, module, folder):
        """The command that has a module of tools/export write a folder."""
        code = f"import sys; sys.path.insert(0, {str(ROOT / 'tools')!r}); from export.{module} import main; sys.exit(main())"
        return [sys.executable, "-c", code, self.architecture.kind, folder, *(["--tiny"] if self.options.tiny else [])]

    def export(self):
        """From random weights to a model folder."""
        a = self.architecture
        if "export" not in self.notes:
            self.step("random weights", self.made_by("random_model", self.source) + ["--dtype", "f16"])
        printed = self.step("export", [sys.executable, ROOT / "tools" / "export_model.py", self.source, self.model, "--dtype", a.dtype, "--name", f"{self.name}, random weights", "--offline"])
        if "disk" not in self.notes["export"]:
            errors = [line.strip() for line in printed.replace("\r", "\n").split("\n") if "differs from torch by" in line]
            self.note("export", disk=size_of(self.model), differences=errors)
        # The weights are in the graphs now.
        shutil.rmtree(self.source, ignore_errors=True)

    def inspect(self):
        """Looks into the model folder."""
        found = document(self.step("inspect", [self.options.program, "inspect", self.model, "--json"]))
        if found["errors"] or not found["usable"]:
            raise Failed(f"inspect: {found['errors']}")
        self.note("inspect", parameters={c["name"]: c["parameters"] for c in found["components"]})

    def engine(self):
        """All steps to an engine of the U-Net."""
        o = self.options
        self.check_room(self.architecture.engine_disk, self.architecture.engine_memory)
        if not self.given:
            self.step("graphs", self.made_by("random_graphs", self.model))
        self.inspect()
        engines = self.folder / "engines"
        self.step("engine", [o.program, "build", self.model, "--components", "unet", "--size", f"{o.size}x{o.size}", "--out", engines])
        if "size" not in self.notes["engine"]:
            found = list(engines.rglob("*.engine"))
            if len(found) != 1:
                raise Failed(f"engine: {engines} has {len(found)} engines, expected 1")
            self.note("engine", size=found[0].stat().st_size)

    def all(self):
        """All steps to a frame."""
        self.check_room(self.architecture.disk, self.architecture.memory)
        o = self.options
        if self.given:
            self.note("export", disk=size_of(self.model))
        else:
            self.export()
        self.inspect()
        side = f"{o.size}x{o.size}"
        printed = self.step("bench", [o.program, "bench", self.model, "--size", side, "--warmup", "1", "--frames", str(o.frames), "--set", "steps=1", "--json"])
        result = document(printed)["results"][0]
        self.note("bench", **{key: result[key] for key in ("load_ms", "first_frame_ms", "frame_ms", "encode_ms", "denoise_ms", "decode_ms", "precomputed", "backend", "size")})
        if result["size"] != [o.size, o.size]:
            raise Failed(f"bench: frames were processed at {result['size']}, expected {side}")
        if "tensors kept" not in result["precomputed"]:
            raise Failed(f"bench: the U-Net was not split; computed ahead: {result['precomputed']}")

        before = self.folder / "in.png"
        write_picture(before, o.size)
        self.step("run", [o.program, "run", self.model, "-i", before, "-o", self.picture, "--prompt", "an (oil painting:1.2) of a lake", "--steps", "1", "--size", side, "--force"])
        self.note("run", picture=look_at(self.picture, before, o.size))

        test = ["cargo", "test", "--locked", "--test", "full_size", "--", "--ignored", "--nocapture", "--test-threads=1"]
        printed = self.step("split", test, {"FULL_MODEL": str(self.model), "FULL_SIDE": str(o.size)})
        # A test's name stands before what it prints first.
        found = re.findall(r"(largest difference .*|nodes \d.*)", printed)
        if "2 passed" not in printed or len(found) != 2:
            raise Failed("split: the tests did not run")
        self.note("split", found=next(line for line in found if line.startswith("largest")))
        for line in found:
            self.say(line)


def write_picture(path, side):
    """A picture of colour ramps, stripes and a disc."""
    import numpy as np
    from PIL import Image

    y, x = np.mgrid[0:side, 0:side] / side
    disc = (x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.09
    picture = np.stack([x, y, 0.5 + 0.5 * np.sin(40 * x)], axis=-1)
    picture[disc] = [0.9, 0.8, 0.2]
    Image.fromarray((picture * 255).astype(np.uint8)).save(path)


def look_at(path, before, side):
    """Checks that a written picture is one: of the right size, not of one colour (which NaN would become), and not its input."""
    import numpy as np
    from PIL import Image

    made = np.asarray(Image.open(path).convert("RGB")).astype(float)
    given = np.asarray(Image.open(before).convert("RGB")).astype(float)
    if made.shape != (side, side, 3):
        raise Failed(f"run: {path} is {made.shape[1]}x{made.shape[0]}, expected {side}x{side}")
    colours = len(np.unique(made.reshape(-1, 3), axis=0))
    spread, change = float(made.std()), float(np.abs(made - given).mean())
    if colours < 100 or spread < 4 or change < 4:
        raise Failed(f"run: {path} has {colours} colours, deviation {spread:.2f}, mean difference to the input {change:.2f}; expected at least 100, 4 and 4")
    return {"colours": colours, "deviation": round(spread, 1), "change": round(change, 1)}


ROWS = {
    "weights": lambda n: f"{sum(v for v in n['inspect']['parameters'].values()) / 1e6:,.0f} M",
    "export, time": lambda n: f"{n['export']['seconds']:.0f} s",
    "export, memory": lambda n: gigabytes(n["export"]["memory"]),
    "folder": lambda n: gigabytes(n["export"]["disk"]),
    "load": lambda n: f"{n['bench']['load_ms'] / 1e3:.1f} s",
    "first frame, from the start": lambda n: f"{n['bench']['first_frame_ms'] / 1e3:.1f} s",
    "frame, 1 step": lambda n: f"{n['bench']['frame_ms']['p50'] / 1e3:.2f} s",
    "of that, U-Net": lambda n: f"{n['bench']['denoise_ms']['p50'] / 1e3:.2f} s",
    "of that, autoencoder": lambda n: f"{(n['bench']['encode_ms']['p50'] + n['bench']['decode_ms']['p50']) / 1e3:.2f} s",
    # What else the machine does does not change these.
    "export, processor time": lambda n: f"{n['export']['processor']:.0f} s",
    "one picture by `run`, processor time": lambda n: f"{n['run']['processor']:.0f} s",
    "running, memory": lambda n: gigabytes(n["run"]["memory"]),
    "computed ahead": lambda n: n["bench"]["precomputed"],
    "two parts against one": lambda n: n["split"]["found"].split(", U-Net")[0],
}


ENGINE_ROWS = {
    "U-Net's weights": lambda n: f"{n['inspect']['parameters']['unet'] / 1e6:,.0f} M",
    "graphs, time": lambda n: f"{n['graphs']['seconds']:.0f} s",
    "graphs, memory": lambda n: gigabytes(n["graphs"]["memory"]),
    "engine, time": lambda n: f"{n['engine']['seconds']:.0f} s",
    "engine, processor time": lambda n: f"{n['engine']['processor']:.0f} s",
    "engine, memory": lambda n: gigabytes(n["engine"]["memory"]),
    "engine, size": lambda n: gigabytes(n["engine"]["size"]),
}


def table(runs, options):
    """What was measured, as Markdown; a dash for steps that were not reached."""
    heads = [r.name if r.given else f"{r.name}, {'f16' if options.engines else r.architecture.dtype}" for r in runs]
    lines = [f"At {options.size}x{options.size}:", "", f"| | {' | '.join(heads)} |", "|---" * (len(runs) + 1) + "|"]
    for name, read in (ENGINE_ROWS if options.engines else ROWS).items():
        cells = []
        for run in runs:
            try:
                cells.append(read(run.notes))
            except KeyError:
                cells.append("–")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parse(argv):
    p = argparse.ArgumentParser(prog="full_size.py", description="Full-size architectures with random weights: exported, loaded, one frame made, measured.", epilog=__doc__.split("\n\n", 1)[1], formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", action="append", choices=ARCHITECTURES, metavar="MODEL", help=f"one of {', '.join(ARCHITECTURES)}; may be given several times (all)")
    p.add_argument("--engines", action="store_true", help="build TensorRT engines of the U-Nets instead")
    p.add_argument("--work", type=pathlib.Path, default=TARGET / "full-size", metavar="DIR", help="where to work (%(default)s)")
    p.add_argument("--program", type=pathlib.Path, default=TARGET / "release" / "streamdiffusion", metavar="FILE", help="the program (%(default)s)")
    p.add_argument("--size", type=int, default=512, metavar="N", help="width and height of the frame (512)")
    p.add_argument("--frames", type=int, default=2, metavar="N", help="frames whose time is measured (2)")
    p.add_argument("--models", type=pathlib.Path, metavar="DIR", help="take folders DIR/MODEL that were exported before, where there are such; they stay")
    p.add_argument("--keep", action="store_true", help="keep models and pictures, and go on with what an earlier run kept; else all is removed that went well")
    p.add_argument("--tiny", action="store_true", help="the same layouts with a million weights each, to try this script")
    p.add_argument("--no-checks", action="store_true", help="begin even where memory or disk look too small")
    return p.parse_args(argv)


def main(argv=None):
    options = parse(argv)
    options.work, options.program = options.work.resolve(), options.program.resolve()
    options.models = options.models and options.models.resolve()
    if not options.program.is_file():
        print(f"error: {options.program}: no such file: cargo build --release", file=sys.stderr)
        return 1
    options.work.mkdir(parents=True, exist_ok=True)
    runs, failed = [], []
    try:
        for name in options.only or ARCHITECTURES:
            run = Run(name, options)
            runs.append(run)
            try:
                run.engine() if options.engines else run.all()
            except Failed as e:
                failed.append(name)
                run.forget()
                run.say(f"FAILED: {e}")
            if not options.keep:
                for folder in (run.source, run.folder / "model", run.folder / "model.partial", run.folder / "engines"):
                    shutil.rmtree(folder, ignore_errors=True)
                if name not in failed:
                    shutil.rmtree(run.folder)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(f"\n{table(runs, options)}\n\n{machine()}. Memory is the most that was resident, mapped files included.")
    print(f"{len(runs) - len(failed)} of {len(runs)} architectures went well" + (f"; FAILED: {', '.join(failed)} ({options.work} has the logs)" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
