#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Restyles an RTSP camera, for days: when the camera or the network goes away, it waits and tries again.

Only the source is taken out of the pipeline and replaced. The element stays, and with it the loaded model; so do its
output's window or viewers, who see the last picture until there is a new one.
"""

import argparse
import sys
import time

import gi

gi.require_version("Gst", "1.0")
from gi.repository import GLib, Gst  # noqa: E402  (after the version is chosen)

from player import NEWEST, Player, add_options, fail, parse_options, say, scaled, start_gstreamer  # noqa: E402


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("camera", help="rtsp://… (or any URI of a live stream)")
    parser.add_argument("--prompt", help="what it should look like (default: the model's own)")
    add_options(parser)
    parser.add_argument(
        "--output",
        default="display",
        help="display, null, or the rtsp:// address of a server that takes streams (default: display)",
    )
    parser.add_argument(
        "--latency",
        type=int,
        default=100,
        metavar="MS",
        help="what the network's jitter is given, in milliseconds (default: 100)",
    )
    parser.add_argument(
        "--tcp",
        action="store_true",
        help="ask the camera for TCP at once, not for UDP first",
    )
    parser.add_argument(
        "--silence",
        type=float,
        default=10,
        metavar="SECONDS",
        help="take the camera for lost when it sends nothing for this long (default: 10)",
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=1,
        metavar="SECONDS",
        help="before the first new attempt; doubles with each that fails (default: 1)",
    )
    parser.add_argument(
        "--longest-wait",
        type=float,
        default=30,
        metavar="SECONDS",
        help="between attempts (default: 30)",
    )
    parser.add_argument(
        "--stats",
        type=float,
        default=10,
        metavar="SECONDS",
        help="print statistics this often; 0: never (default: 10)",
    )
    arguments = parse_options(parser)
    if min(arguments.wait, arguments.longest_wait, arguments.silence) <= 0:
        parser.error("--wait, --longest-wait and --silence must be above 0")
    if arguments.latency < 0 or arguments.stats < 0:
        parser.error("--latency and --stats must not be below 0")
    return arguments


class Relay(Player):
    """A pipeline that stays, and a source in it that comes and goes."""

    def __init__(self, arguments):
        pipeline = Gst.parse_launch(
            f"{NEWEST} name=entry ! {scaled(arguments.size)}"
            f" ! streamdiffusion name=style ! queue ! videoconvert ! {self.sink(arguments.output)}"
        )
        super().__init__(pipeline, arguments)
        self.arguments = arguments
        self.out = None
        self.renew_output()
        if arguments.prompt is not None:
            self.element.set_property("prompt", arguments.prompt)
        self.source = None
        self.wait = arguments.wait
        # When the source last sent something, by time.monotonic(); and whether it has at all.
        self.heard = 0.0
        self.is_there = False

    @staticmethod
    def sink(output):
        if output == "display":
            return "autovideosink"
        if output == "null":
            return "fakesink sync=true"
        if not output.startswith("rtsp:"):
            raise ValueError(f"--output: expected display, null or rtsp://…, not '{output}'")
        if Gst.ElementFactory.find("rtspclientsink") is None:
            raise ValueError("--output rtsp://… needs the element rtspclientsink (Debian: gstreamer1.0-rtsp)")
        return "x264enc tune=zerolatency key-int-max=30 ! h264parse name=encoded"

    def start(self):
        if self.arguments.stats:
            GLib.timeout_add(int(self.arguments.stats * 1000), self.print_stats)
        # Sources notice most losses themselves; this is for the rest.
        GLib.timeout_add(500, self.look_for_silence)
        self.connect()

    def stopping(self):
        self.print_stats()

    def renew_output(self):
        """A new element that sends to the RTSP server, if that is the output: one that has lost its server is of no use
        any more (GStreamer 1.22)."""
        encoded = self.pipeline.get_by_name("encoded")
        if encoded is None:
            return
        if self.out is not None:
            self.out.set_state(Gst.State.NULL)
            self.pipeline.remove(self.out)
        self.out = Gst.ElementFactory.make("rtspclientsink")
        self.out.set_property("location", self.arguments.output)
        self.pipeline.add(self.out)
        encoded.link(self.out)

    def connect(self):
        """Puts a new source into the pipeline."""
        source = Gst.parse_bin_from_description(
            "uridecodebin name=decoder caps=video/x-raw ! videoconvert name=end", False
        )
        decoder = source.get_by_name("decoder")
        decoder.set_property("uri", self.arguments.camera)
        decoder.connect("source-setup", self.set_up)
        pad = Gst.GhostPad.new("src", source.get_by_name("end").get_static_pad("src"))
        pad.add_probe(
            Gst.PadProbeType.BUFFER | Gst.PadProbeType.EVENT_DOWNSTREAM, self.on_data, source
        )
        source.add_pad(pad)
        self.source = source
        self.is_there = False
        self.heard = time.monotonic()
        self.pipeline.add(source)
        source.link(self.pipeline.get_by_name("entry"))
        # The first time this starts all of it; later it does nothing, and the source catches up with the rest.
        self.pipeline.set_state(Gst.State.PLAYING)
        source.sync_state_with_parent()
        return GLib.SOURCE_REMOVE

    def set_up(self, _decoder, source):
        if source.get_factory().get_name() == "rtspsrc":
            source.set_property("latency", self.arguments.latency)
            if self.arguments.tcp:
                source.set_property("protocols", "tcp")

    def on_data(self, _pad, info, source):
        """On the source's own thread: notes that it lives, and keeps its end from ending all."""
        if info.type & Gst.PadProbeType.BUFFER:
            self.heard = time.monotonic()
            if not self.is_there and source is self.source:
                self.is_there = True
                GLib.idle_add(self.on_first_frame)
        elif info.get_event().type == Gst.EventType.EOS:
            GLib.idle_add(self.lose, source, "the stream has ended")
            return Gst.PadProbeReturn.DROP
        return Gst.PadProbeReturn.OK

    def on_first_frame(self):
        self.wait = self.arguments.wait
        say("the camera is there")
        return GLib.SOURCE_REMOVE

    def lose(self, source, why):
        """Takes the source out, and tries again later."""
        # Its thread may tell of the same loss twice, the second time when it is gone.
        if source is not self.source:
            return GLib.SOURCE_REMOVE
        self.source = None
        source.set_state(Gst.State.NULL)
        self.pipeline.remove(source)
        if self.pipeline.get_state(0)[1] != Gst.State.PLAYING:
            # It waits for a first frame, without a clock, and a source that came now could not know the time. In READY
            # the element keeps its model.
            self.pipeline.set_state(Gst.State.READY)
        say(f"no camera: {why}; again in {self.wait:g} s")
        GLib.timeout_add(int(self.wait * 1000), self.connect)
        self.wait = min(2 * self.wait, self.arguments.longest_wait)
        return GLib.SOURCE_REMOVE

    def look_for_silence(self):
        if self.source is not None and time.monotonic() - self.heard > self.arguments.silence:
            self.lose(self.source, f"silent for {self.arguments.silence:g} s")
        return GLib.SOURCE_CONTINUE

    def on_error(self, source, text, details):
        if self.source is not None and source.has_as_ancestor(self.source):
            self.lose(self.source, text)
        elif self.is_of_the_output(source):
            self.lose_output(text)
        elif source.has_as_ancestor(self.pipeline):
            super().on_error(source, text, details)
        # Else a source that is out already says why it fell silent.

    def on_warning(self, source, text):
        # What sources warn of ends in a loss or in nothing.
        if source == self.element:
            super().on_warning(source, text)

    def on_end(self):
        """Ends of sources do not get here (see `on_data`)."""

    def is_of_the_output(self, element):
        return self.out is not None and (element == self.out or element.has_as_ancestor(self.out))

    def lose_output(self, why):
        """The server that takes the stream is gone: begins anew, but for the model."""
        source, self.source = self.source, None
        if source is None and self.pipeline.get_state(0)[1] == Gst.State.READY:
            return
        if source is not None:
            source.set_state(Gst.State.NULL)
            self.pipeline.remove(source)
            GLib.timeout_add(int(self.wait * 1000), self.connect)
        self.pipeline.set_state(Gst.State.READY)
        self.renew_output()
        say(f"no output: {why}; again in {self.wait:g} s")
        self.wait = min(2 * self.wait, self.arguments.longest_wait)

    def print_stats(self):
        stats = self.element.get_property("stats")
        say(f"stats: {stats.get_value('output')} frames out, {stats.get_value('fps'):.1f} fps")
        return GLib.SOURCE_CONTINUE


def main():
    arguments = parse_arguments()
    start_gstreamer()
    try:
        if not Gst.uri_is_valid(arguments.camera):
            raise ValueError(f"expected a URI such as rtsp://host/path, not '{arguments.camera}'")
        relay = Relay(arguments)
    except (GLib.Error, ValueError) as error:
        fail(error)
    sys.exit(relay.run())


if __name__ == "__main__":
    main()
