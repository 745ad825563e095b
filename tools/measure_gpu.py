#!/usr/bin/env python3
"""Runs a command and tells what it cost the GPU: `python tools/measure_gpu.py -- streamdiffusion bench FOLDER …`

Asks nvidia-smi for power, use and memory some times a second while the command runs, and prints one line of JSON in the
end: seconds, mean and highest power in W, energy in J (mean power times time), mean use in %, and the most memory in use in
MB. With --idle, power is taken before the command too, and the energy above that is told. Figures are the whole GPU's,
whoever else uses it. The first and last --trim seconds are left out of means, for loading and ending.

Needs nvidia-smi, which comes with NVIDIA's driver; nothing is changed on the GPU.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import threading
import time

QUERY = "power.draw,utilization.gpu,memory.used"


class Sampler:
    """Collects what nvidia-smi says until it is stopped."""

    def __init__(self, gpu, interval):
        command = ["nvidia-smi", f"--id={gpu}", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits", f"--loop-ms={interval}"]
        self.samples = []
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()

    def read(self):
        for line in self.process.stdout:
            try:
                self.samples.append((time.monotonic(), *map(float, line.split(","))))
            except ValueError:
                # "[N/A]": this GPU does not tell.
                continue

    def stop(self):
        self.process.terminate()
        self.thread.join(timeout=5)
        return self.samples


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--gpu", type=int, default=0, metavar="N", help="number of the GPU (0)")
    p.add_argument("--interval", type=int, default=50, metavar="MS", help="time between two samples (50)")
    p.add_argument("--idle", type=float, default=0, metavar="S", help="seconds to measure before the command starts (0)")
    p.add_argument("--trim", type=float, default=0, metavar="S", help="seconds at the beginning and the end that means leave out (0)")
    p.add_argument("command", nargs="+", metavar="COMMAND", help="what to run, after --")
    options = p.parse_args()
    if not shutil.which("nvidia-smi"):
        p.error("nvidia-smi was not found; it comes with NVIDIA's driver")
    idle = None
    if options.idle > 0:
        sampler = Sampler(options.gpu, options.interval)
        time.sleep(options.idle)
        idle = [power for _, power, _, _ in sampler.stop()]
    sampler = Sampler(options.gpu, options.interval)
    begin = time.monotonic()
    try:
        status = subprocess.run(options.command).returncode
    except OSError as error:
        sampler.stop()
        p.error(f"{options.command[0]}: {error.strerror}")
    end = time.monotonic()
    samples = [s for s in sampler.stop() if begin + options.trim <= s[0] <= end - options.trim]
    if not samples:
        print(f"measure_gpu: no sample in {end - begin:.1f} s; a longer run, or a smaller --trim, is needed", file=sys.stderr)
        return status or 1
    power = [s[1] for s in samples]
    seconds = end - begin
    result = {
        "seconds": round(seconds, 2),
        "samples": len(samples),
        "power_w": round(statistics.mean(power), 1),
        "power_most_w": round(max(power), 1),
        "energy_j": round(statistics.mean(power) * seconds, 1),
        "use_percent": round(statistics.mean(s[2] for s in samples), 1),
        "memory_most_mb": max(s[3] for s in samples),
    }
    if idle:
        result["idle_w"] = round(statistics.mean(idle), 1)
        result["energy_above_idle_j"] = round((statistics.mean(power) - statistics.mean(idle)) * seconds, 1)
    print(json.dumps(result))
    return status


if __name__ == "__main__":
    sys.exit(main())
