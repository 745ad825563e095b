#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Restyles a video live, and takes new prompts while it plays: one for each line typed.

Shows what a Python program does with the element: build a pipeline around it, set its properties at any time from any
thread, read its statistics, and listen to the bus. Needs Debian's python3-gst-1.0, and GST_PLUGIN_PATH set to the folder
of libgststreamdiffusion.so unless that is installed.
"""

import argparse
import itertools
import os
import signal
import sys
import threading

import gi

gi.require_version("Gst", "1.0")
from gi.repository import GLib, Gst  # noqa: E402  (after the version is chosen)

from properties import set_from_text  # noqa: E402


def say(text):
    print(text, flush=True)


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
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PROPERTY=VALUE",
        dest="properties",
        help="set a property of the element, as in --set steps=1; may be given several times",
    )
    parser.add_argument(
        "--size",
        default="512x512",
        metavar="WxH",
        help="scale the input to this size first (default: 512x512)",
    )
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
    arguments = parser.parse_args()
    try:
        width, height = (int(side) for side in arguments.size.split("x"))
        if min(width, height) < 16 or width % 2 or height % 2:
            raise ValueError
        arguments.size = width, height
    except ValueError:
        parser.error("--size: expected WIDTHxHEIGHT, both even and 16 or more")
    if arguments.every <= 0 or arguments.stats < 0:
        parser.error("--every must be above 0, --stats not below it")
    for text in arguments.properties:
        if "=" not in text:
            parser.error(f"--set: expected PROPERTY=VALUE, not '{text}'")
    return arguments


def build(arguments):
    """The pipeline. What the user typed is set as properties, not pasted into its description: nothing needs quoting."""
    kind, _, rest = arguments.input.partition(":")
    uri = device = None
    if arguments.input == "test":
        source = "videotestsrc name=source is-live=true pattern=ball"
    elif kind == "camera":
        source = "v4l2src name=source ! decodebin"
        device = rest or "/dev/video0"
    else:
        source = "uridecodebin name=source caps=video/x-raw"
        uri = arguments.input if Gst.uri_is_valid(arguments.input) else None
        uri = uri or Gst.filename_to_uri(os.path.abspath(arguments.input))
    width, height = arguments.size
    # Files play at the machine's pace; of anything else, the newest frame is what counts.
    is_file = uri is not None and uri.startswith("file:")
    queue = "queue" if is_file else "queue leaky=downstream max-size-buffers=1"
    location = None
    if arguments.output == "display":
        sink = "autovideosink"
    elif arguments.output == "null":
        sink = "fakesink sync=true"
    else:
        sink = "x264enc tune=zerolatency ! h264parse ! mp4mux ! filesink name=file"
        location = arguments.output
    pipeline = Gst.parse_launch(
        f"{source} ! videoconvert ! videoscale add-borders=true"
        f" ! video/x-raw,width={width},height={height},pixel-aspect-ratio=1/1"
        f" ! {queue} ! streamdiffusion name=style ! queue ! videoconvert ! {sink}"
    )
    for name, key, value in [
        ("source", "uri", uri),
        ("source", "device", device),
        ("file", "location", location),
    ]:
        if value is not None:
            pipeline.get_by_name(name).set_property(key, value)
    return pipeline


class Player:
    """Plays the pipeline until it ends, fails or is told to stop."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.pipeline = build(arguments)
        self.element = self.pipeline.get_by_name("style")
        for text in arguments.properties:
            set_from_text(self.element, text)
        self.loop = GLib.MainLoop()
        self.stopping = False
        self.failed = False
        self.started = False

    def run(self):
        bus = self.pipeline.get_bus()
        bus.add_signal_watch()
        bus.connect("message", self.on_message)
        for number in (signal.SIGINT, signal.SIGTERM):
            GLib.unix_signal_add(GLib.PRIORITY_HIGH, number, self.on_signal)
        if self.arguments.prompt:
            prompts = itertools.cycle(self.arguments.prompt)
            self.set_prompt(next(prompts))
            if len(self.arguments.prompt) > 1:
                every = int(self.arguments.every * 1000)
                GLib.timeout_add(every, lambda: self.set_prompt(next(prompts)))
        if self.arguments.stats:
            GLib.timeout_add(int(self.arguments.stats * 1000), self.print_stats)
        threading.Thread(target=self.read_prompts, daemon=True).start()
        try:
            # A failure is told on the bus, with its reason.
            self.pipeline.set_state(Gst.State.PLAYING)
            self.loop.run()
        finally:
            self.pipeline.set_state(Gst.State.NULL)
            bus.remove_signal_watch()
        if self.started:
            self.print_stats()
        return 1 if self.failed else 0

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
        if self.stopping:
            say("stopping at once")
            self.loop.quit()
        else:
            # So that what is being written is finished; the end of the stream then ends the loop.
            say("stopping; once more to stop at once")
            self.stop()
        return GLib.SOURCE_CONTINUE

    def stop(self):
        self.stopping = True
        if self.started:
            self.pipeline.send_event(Gst.Event.new_eos())
        else:
            self.loop.quit()
        return GLib.SOURCE_REMOVE

    def on_message(self, _bus, message):
        kind = message.type
        if kind == Gst.MessageType.EOS:
            say("the end")
            self.loop.quit()
        elif kind == Gst.MessageType.ERROR:
            error, details = message.parse_error()
            say(f"error from {message.src.get_name()}: {error.message}")
            print(details, file=sys.stderr)
            self.failed = True
            self.loop.quit()
        elif kind == Gst.MessageType.WARNING:
            warning, _ = message.parse_warning()
            say(f"warning from {message.src.get_name()}: {warning.message}")
        elif kind == Gst.MessageType.LATENCY:
            # The element's latency changes with its steps; sinks need to be told.
            self.pipeline.recalculate_latency()
        elif kind == Gst.MessageType.STATE_CHANGED and message.src == self.pipeline:
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
    Gst.init(None)
    if Gst.ElementFactory.find("streamdiffusion") is None:
        sys.exit("no element streamdiffusion: set GST_PLUGIN_PATH to the folder of libgststreamdiffusion.so")
    try:
        player = Player(arguments)
    except (GLib.Error, ValueError) as error:
        sys.exit(f"{os.path.basename(sys.argv[0])}: {getattr(error, 'message', error)}")
    sys.exit(player.run())


if __name__ == "__main__":
    main()
