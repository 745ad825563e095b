"""OUT.partial: where a model folder grows, component by component, until it is whole and gets its name."""

import json
import os
import shutil

from . import hashing
from .errors import ExportError

MARKER = ".finished.json"


class Workspace:
    """The folder `out` to be, in `out`.partial meanwhile."""

    def __init__(self, out, force=False):
        self.out = out
        self.force = force
        self.partial = out.with_name(out.name + ".partial")

    def open(self):
        """Checks that OUT may be written and makes OUT.partial, or takes up one that is there."""
        if self.out.exists() and not self.force:
            raise ExportError(f"{self.out} exists: choose another folder, or --force to replace it")
        if self.out.exists() and not (self.out.is_dir() and ((self.out / "model_index.json").exists() or not any(self.out.iterdir()))):
            raise ExportError(f"{self.out} is not a model folder; --force replaces only those")
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise ExportError(f"{self.partial}: cannot be made: {e}") from None

    def close(self):
        """After a failure: removes OUT.partial if there is nothing in it to go on from."""
        try:
            self.partial.rmdir()
        except OSError:
            pass

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
            if path.name not in names:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def files(self):
        """{path: SHA-256} of all there is but the markers, re-using what they say."""
        found = {}
        for path in sorted(self.partial.rglob("*")):
            if path.is_file() and path.name != MARKER:
                found[path.relative_to(self.partial).as_posix()] = None
        for marker in self.partial.rglob(MARKER):
            folder = marker.parent.relative_to(self.partial).as_posix()
            for name, digest in json.loads(marker.read_text(encoding="utf-8"))["files"].items():
                found[f"{folder}/{name}"] = digest
        return {name: digest or hashing.of_file(self.partial / name) for name, digest in found.items()}

    def publish(self, keep):
        """Gives the folder its name, as the last thing. `keep`: OUT.partial stays, sharing the files where the disk can."""
        whole = self.partial
        if keep:
            whole = self.out.with_name(self.out.name + ".whole")
            shutil.rmtree(whole, ignore_errors=True)
            shutil.copytree(self.partial, whole, copy_function=_link)
        for marker in whole.rglob(MARKER):
            marker.unlink()
        old = self.out.with_name(self.out.name + ".old")
        if self.out.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(self.out, old)
        os.replace(whole, self.out)
        shutil.rmtree(old, ignore_errors=True)


def _link(source, target):
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
