#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Restyles a video live, and takes new prompts while it plays: one for each line typed.

Shows what a Python program does with the element: build a pipeline around it, set its properties at any time from any
thread, read its statistics, and listen to the bus. Needs Debian's python3-gst-1.0, and GST_PLUGIN_PATH set to the folder
of libgststreamdiffusion.so unless that is installed.
"""

import argparse
import itertools
import sys
import threading

import gi

gi.require_version("Gst", "1.0")
from gi.repository import GLib, Gst  # noqa: E402  (after the version is chosen)

from player import Input, Player, add_options, fail, parse_options, say, scaled, start_gstreamer  # noqa: E402


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "input",
        nargs="?",
        default="test",
        help="test, camera, camera:/dev/videoN, a file or a URI (default: test)",
    )
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        help="what it should look like; give several to go through them in turns",
    )
    parser.add_argument(
        "--every",
        type=float,
        default=10,
        metavar="SECONDS",
        help="with several prompts, how long each lasts (default: 10)",
    )
    add_options(parser)
    parser.add_argument(
        "--output",
        default="display",
        help="display, null, or the name of an .mp4 to write (default: display)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="N",
        help="stop after N seconds of playing (default: at the end of the input)",
    )
    parser.add_argument(
        "--stats",
        type=float,
        default=2,
        metavar="SECONDS",
        help="print statistics this often; 0: never (default: 2)",
    )
    arguments = parse_options(parser)
    if arguments.every <= 0 or arguments.stats < 0:
        parser.error("--every must be above 0, --stats not below it")
    return arguments


def build(arguments):
    """The pipeline."""
    source = Input(arguments.input)
    if arguments.output == "display":
        sink = "autovideosink"
    elif arguments.output == "null":
        sink = "fakesink sync=true"
    else:
        sink = "x264enc tune=zerolatency ! h264parse ! mp4mux ! filesink name=file"
    pipeline = Gst.parse_launch(
        f"{source.description} ! {scaled(arguments.size)} ! {source.queue()}"
        f" ! streamdiffusion name=style ! queue ! videoconvert ! {sink}"
    )
    source.apply(pipeline)
    if (file := pipeline.get_by_name("file")) is not None:
        file.set_property("location", arguments.output)
    return pipeline


class Restyler(Player):
    """Plays the pipeline until it ends, fails or is told to stop."""

    def __init__(self, arguments):
        super().__init__(build(arguments), arguments)
        self.arguments = arguments
        self.is_stopping = False
        self.started = False

    def start(self):
        if self.arguments.prompt:
            prompts = itertools.cycle(self.arguments.prompt)
            self.set_prompt(next(prompts))
            if len(self.arguments.prompt) > 1:
                every = int(self.arguments.every * 1000)
                GLib.timeout_add(every, lambda: self.set_prompt(next(prompts)))
        if self.arguments.stats:
            GLib.timeout_add(int(self.arguments.stats * 1000), self.print_stats)
        threading.Thread(target=self.read_prompts, daemon=True).start()
        super().start()

    def stopping(self):
        if self.started:
            self.print_stats()

    def set_prompt(self, prompt):
        self.element.set_property("prompt", prompt)
        say(f"prompt: {prompt}")
        return GLib.SOURCE_CONTINUE

    def read_prompts(self):
        # On a thread of its own: properties may be set from any.
        for line in sys.stdin:
            if line.strip():
                self.set_prompt(line.strip())

    def print_stats(self):
        stats = self.element.get_property("stats")
        say(
            f"stats: {stats.get_value('output')} frames out, {stats.get_value('fps'):.1f} fps,"
            f" {stats.get_value('skipped')} skipped, at {stats.get_value('width')}x{stats.get_value('height')}"
            f" on {stats.get_value('device') or 'nothing yet'},"
            f" U-Net {stats.get_value('denoise-ms-p50'):.0f} ms"
        )
        return GLib.SOURCE_CONTINUE

    def on_signal(self):
        if self.is_stopping:
            say("stopping at once")
            self.loop.quit()
        else:
            # So that what is being written is finished; the end of the stream then ends the loop.
            say("stopping; once more to stop at once")
            self.stop()
        return GLib.SOURCE_CONTINUE

    def stop(self):
        self.is_stopping = True
        if self.started:
            self.pipeline.send_event(Gst.Event.new_eos())
        else:
            self.loop.quit()
        return GLib.SOURCE_REMOVE

    def on_end(self):
        say("the end")
        self.loop.quit()

    def on_other(self, message):
        kind = message.type
        if kind == Gst.MessageType.STATE_CHANGED and message.src == self.pipeline:
            if message.parse_state_changed()[1] == Gst.State.PLAYING and not self.started:
                self.started = True
                say("playing")
                if self.arguments.seconds is not None:
                    GLib.timeout_add(int(self.arguments.seconds * 1000), self.stop)
        elif kind == Gst.MessageType.PROGRESS and message.src == self.element:
            _, code, text = message.parse_progress()
            say(f"progress: {code}: {text}")
        elif kind == Gst.MessageType.ELEMENT and message.src == self.element:
            say(f"message: {message.get_structure().to_string()}")


def main():
    arguments = parse_arguments()
    start_gstreamer()
    try:
        restyler = Restyler(arguments)
    except (GLib.Error, ValueError) as error:
        fail(error)
    sys.exit(restyler.run())


if __name__ == "__main__":
    main()
