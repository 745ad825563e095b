"""OUT.partial: where a model folder grows, component by component, until it is whole and gets its name."""

import json
import os
import pathlib
import shutil
import tempfile
import tomllib

from . import TOOL, hashing
from .errors import ExportError

try:
    import fcntl
except ImportError:  # Windows: two exports to one folder are not told from each other there.
    fcntl = None

MARKER = ".finished.json"
LOCK = ".lock"
"""In OUT.partial: tells whose folder it is, and is held by the process that writes there."""


def with_name(out):
    """OUT as a path that has a name; `.` and `..` have none of their own."""
    out = pathlib.Path(out)
    if out.name in ("", ".."):
        out = pathlib.Path(os.path.abspath(out))
    if not out.name:
        raise ExportError(f"{out}: the top of a disk, expected a folder to be made")
    return out


def partial_of(out):
    """Where `out` grows."""
    out = with_name(out)
    return out.with_name(out.name + ".partial")


def is_exported(folder):
    """Whether `folder` is a model folder that this tool wrote."""
    try:
        table = tomllib.loads((folder / "streamdiffusion.toml").read_text(encoding="utf-8"))
        return table["export"]["tool"] == TOOL
    except (OSError, ValueError, KeyError, TypeError):
        return False


def overlap(a, b):
    """How two paths lie to each other: `same`, `holds` (a has b in it), `inside`, or None."""
    a, b = pathlib.Path(a).resolve(), pathlib.Path(b).resolve()
    if a == b:
        return "same"
    return "holds" if a in b.parents else "inside" if b in a.parents else None


class Workspace:
    """The folder `out` to be, in `out`.partial meanwhile. `inputs`: {what it is: path} of all that is read, which must not be written over."""

    def __init__(self, out, force=False, inputs=None):
        self.out = with_name(out)
        self.force = force
        self.inputs = inputs or {}
        self.partial = partial_of(self.out)
        self.lock = None

    def open(self):
        """Checks that OUT may be written and makes OUT.partial, or takes up one that is there."""
        there = os.path.lexists(self.out)
        for what, path in self.inputs.items():
            for target in (self.out, self.partial):
                how = overlap(target, path)
                if how in ("same", "holds") or (how == "inside" and there):
                    words = {"same": "is", "holds": "has in it", "inside": "is inside"}[how]
                    raise ExportError(f"{target} {words} {what}, {path}, which the export reads: choose another OUT")
        if there and not self.force:
            raise ExportError(f"{self.out} exists: choose another folder, or --force to replace it")
        if there and not (is_exported(self.out) or (self.out.is_dir() and not any(self.out.iterdir()))):
            raise ExportError(f"{self.out} is not a model folder of {TOOL} (its streamdiffusion.toml does not say so); --force replaces only those")
        here = pathlib.Path.cwd()
        if there and overlap(self.out, here) in ("same", "holds"):
            raise ExportError(f"{self.out}: the working directory is in it; --force would take it away")
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise ExportError(f"{self.partial}: cannot be made: {e.strerror}") from None
        if self.partial.is_symlink():
            raise ExportError(f"{self.partial}: a link, expected a folder of {TOOL}: remove it, or choose another OUT")
        self._own()

    def _own(self):
        """Locks OUT.partial; an error where another process has it, or where it is not ours."""
        path = self.partial / LOCK
        if not path.exists() and any(self.partial.iterdir()):
            raise ExportError(f"{self.partial}: has files in it that are not from {TOOL}: move it away, or choose another OUT")
        self.lock = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        note = self._note()
        if fcntl is not None:
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._unlock()
                raise ExportError(f"{self.partial}: process {note.get('pid', '(unknown)')} is writing there: wait for it, or choose another OUT") from None
            except OSError:
                pass  # Some network disks have no locks.
            try:
                gone = os.stat(path).st_ino != os.fstat(self.lock).st_ino
            except FileNotFoundError:
                gone = True
            if gone:
                self._unlock()
                raise ExportError(f"{self.out}: another process has just finished it")
        # Empty: a run that was stopped between making the file and writing it.
        if note.get("tool") != TOOL and (os.fstat(self.lock).st_size or any(p.name != LOCK for p in self.partial.iterdir())):
            self._unlock()
            raise ExportError(f"{self.partial}: its {LOCK} is not from {TOOL}: move the folder away, or choose another OUT")
        os.ftruncate(self.lock, 0)
        os.pwrite(self.lock, (json.dumps({"tool": TOOL, "pid": os.getpid()}) + "\n").encode(), 0)

    def _note(self):
        """What the lock file says."""
        try:
            note = json.loads(os.pread(self.lock, 1000, 0))
            return note if isinstance(note, dict) else {}
        except ValueError:
            return {}

    def _unlock(self):
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def close(self):
        """After a failure: removes OUT.partial if there is nothing in it to go on from."""
        if self.lock is None:
            return
        try:
            if [p.name for p in self.partial.iterdir()] == [LOCK]:
                (self.partial / LOCK).unlink()
                self.partial.rmdir()
        except OSError:
            pass
        self._unlock()

    def check_space(self, needed):
        """An error where the disk has not `needed` bytes left."""
        free = shutil.disk_usage(self.partial).free
        if free < needed:
            raise ExportError(f"{self.partial}: {needed / 1e9:.1f} GB of disk are needed, {free / 1e9:.1f} GB are free")

    def finished(self, component, key):
        """What was noted when `component` was finished from the same `key`, if its files are still those; else None, and the folder is removed."""
        folder = self.partial / component
        try:
            note = json.loads((folder / MARKER).read_text(encoding="utf-8"))
            if note["key"] == key and hashing.of_files(folder, note["files"]) == note["files"] and self._only(folder, note["files"]):
                return note
        except (OSError, ValueError, KeyError, TypeError):
            pass
        if folder.exists():
            shutil.rmtree(folder)
        return None

    @staticmethod
    def _only(folder, files):
        there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        return there == {*files, MARKER}

    def begin(self, component):
        """An empty folder for `component`."""
        folder = self.partial / component
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        return folder

    def finish(self, component, key, **facts):
        """Marks `component` as finished: the marker appears in one piece, after all other files."""
        folder = self.partial / component
        note = {"key": key, "files": hashing.of_files(folder), **facts}
        temporary = folder / (MARKER + ".tmp")
        temporary.write_text(json.dumps(note), encoding="utf-8")
        os.replace(temporary, folder / MARKER)
        return note

    def keep_only(self, names):
        """Removes what an earlier run left and this model has not."""
        for path in self.partial.iterdir():
            if path.name not in {*names, LOCK}:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def files(self):
        """{path: SHA-256} of all there is but the markers, re-using what they say."""
        found = {}
        for path in sorted(self.partial.rglob("*")):
            if path.is_file() and path.name not in (MARKER, LOCK):
                found[path.relative_to(self.partial).as_posix()] = None
        for marker in self.partial.rglob(MARKER):
            folder = marker.parent.relative_to(self.partial).as_posix()
            for name, digest in json.loads(marker.read_text(encoding="utf-8"))["files"].items():
                found[f"{folder}/{name}"] = digest
        return {name: digest or hashing.of_file(self.partial / name) for name, digest in found.items()}

    def publish(self, keep):
        """Gives the folder its name, as the last thing. `keep`: OUT.partial stays, sharing the files where the disk can.

        What was at OUT is moved aside into a new folder beside it, and removed once the new one is in its place.
        """
        aside = pathlib.Path(tempfile.mkdtemp(prefix=f"{self.out.name}.replaced-", dir=self.out.parent))
        whole, old = self.partial, aside / "old"
        try:
            if keep:
                whole = aside / "whole"
                shutil.copytree(self.partial, whole, copy_function=_link)
            for marker in whole.rglob(MARKER):
                marker.unlink()
            (whole / LOCK).unlink()
            if os.path.lexists(self.out):
                os.replace(self.out, old)
            try:
                os.replace(whole, self.out)
            except OSError:
                if os.path.lexists(old):
                    os.replace(old, self.out)
                raise
        finally:
            # A folder that could be neither replaced nor put back stays.
            if os.path.lexists(self.out) or not os.path.lexists(old):
                shutil.rmtree(aside, ignore_errors=True)
            self._unlock()


def _link(source, target):
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
