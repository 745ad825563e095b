"""What the person at the terminal sees: steps with their times, and the most memory that was used."""

import sys
import time

from tqdm import tqdm


class Progress:
    """Lines on standard output, and from `start` on a bar below them, on standard error."""

    def __init__(self):
        self.bar = None

    def start(self, steps):
        """Shows a bar over so many steps."""
        self.bar = tqdm(total=steps, file=sys.stderr, unit="step", bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}]")

    def say(self, text):
        """A line, above the bar if there is one."""
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    def step(self, text):
        """Names the step that begins; as a context manager it counts it and says how long it took."""
        return _Step(self, text)

    def skip(self, steps):
        """Counts steps that need not be done."""
        self.bar.update(steps)

    def close(self):
        if self.bar is not None:
            self.bar.close()


class _Step:
    def __init__(self, progress, text):
        self.progress, self.text = progress, text

    def __enter__(self):
        self.began = time.monotonic()
        self.progress.bar.set_description(self.text)
        return self

    def __exit__(self, kind, error, trace):
        if kind is None:
            self.progress.bar.update()
            self.progress.say(f"  {self.text}: {time.monotonic() - self.began:.1f} s")


def peak_memory():
    """The most resident memory the process has had, in bytes."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def gigabytes(size):
    """Bytes as text."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
