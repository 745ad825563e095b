# SPDX-License-Identifier: MIT OR Apache-2.0
"""What the Python examples share: options and inputs, and a pipeline that plays until something ends it."""

import os
import signal
import sys

import gi

gi.require_version("Gst", "1.0")
from gi.repository import GLib, Gst  # noqa: E402  (after the version is chosen)

from properties import set_from_text  # noqa: E402


def say(text):
    print(text, flush=True)


def add_options(parser):
    """The options that all examples have."""
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
        help="scale the pictures to this size first (default: 512x512)",
    )


def parse_options(parser):
    """The arguments, with `size` as two numbers. Ends the program if one of them cannot be."""
    arguments = parser.parse_args()
    try:
        width, height = (int(side) for side in arguments.size.split("x"))
        if min(width, height) < 16 or width % 2 or height % 2:
            raise ValueError
        arguments.size = width, height
    except ValueError:
        parser.error("--size: expected WIDTHxHEIGHT, both even and 16 or more")
    for text in arguments.properties:
        if "=" not in text:
            parser.error(f"--set: expected PROPERTY=VALUE, not '{text}'")
    return arguments


class Input:
    """Where pictures come from: test, camera, camera:/dev/videoN, a file or a URI.

    `description` is the beginning of a pipeline, with an element `source`. What the user typed is not in it, so nothing
    needs quoting: `apply` sets it.
    """

    def __init__(self, text):
        kind, _, rest = text.partition(":")
        self.settings = {}
        # Files play at the machine's pace; of anything else, the newest frame is what counts.
        self.is_file = False
        if text == "test":
            self.description = "videotestsrc name=source is-live=true pattern=ball"
        elif kind == "camera":
            self.description = "v4l2src name=source ! decodebin"
            self.settings["device"] = rest or "/dev/video0"
        else:
            self.description = "uridecodebin name=source caps=video/x-raw"
            uri = text if Gst.uri_is_valid(text) else Gst.filename_to_uri(os.path.abspath(text))
            self.settings["uri"] = uri
            self.is_file = uri.startswith("file:")

    def queue(self):
        """The queue to put in front of the element."""
        return "queue" if self.is_file else NEWEST

    def apply(self, pipeline):
        for name, value in self.settings.items():
            pipeline.get_by_name("source").set_property(name, value)


# The newest frame always: what waits here while one is processed is old.
NEWEST = "queue leaky=downstream max-size-buffers=1"


def scaled(size):
    """A piece of a pipeline that brings pictures to this size, with borders where their shape differs."""
    width, height = size
    return (
        "videoconvert ! videoscale add-borders=true"
        f" ! video/x-raw,width={width},height={height},pixel-aspect-ratio=1/1"
    )


class Player:
    """A pipeline with the element `style` in it, and the loop that listens to it.

    Errors end the loop; what else the bus tells goes to `on_warning`, `on_end` and `on_other`.
    """

    def __init__(self, pipeline, arguments):
        self.pipeline = pipeline
        self.element = pipeline.get_by_name("style")
        for text in arguments.properties:
            set_from_text(self.element, text)
        self.loop = GLib.MainLoop()
        self.failed = False

    def run(self):
        """Plays until `loop` is told to quit. The exit status."""
        bus = self.pipeline.get_bus()
        bus.add_signal_watch()
        bus.connect("message", self.on_message)
        for number in (signal.SIGINT, signal.SIGTERM):
            GLib.unix_signal_add(GLib.PRIORITY_HIGH, number, self.on_signal)
        try:
            self.start()
            self.loop.run()
        finally:
            self.stopping()
            self.pipeline.set_state(Gst.State.NULL)
            bus.remove_signal_watch()
        return 1 if self.failed else 0

    def start(self):
        # A failure is told on the bus, with its reason.
        self.pipeline.set_state(Gst.State.PLAYING)

    def stopping(self):
        """The loop has ended; the pipeline still plays."""

    def on_signal(self):
        self.loop.quit()
        return GLib.SOURCE_CONTINUE

    def on_message(self, _bus, message):
        if message.type == Gst.MessageType.ERROR:
            error, details = message.parse_error()
            self.on_error(message.src, error.message, details)
        elif message.type == Gst.MessageType.WARNING:
            self.on_warning(message.src, message.parse_warning()[0].message)
        elif message.type == Gst.MessageType.LATENCY:
            # The element's latency changes with its steps; sinks need to be told.
            self.pipeline.recalculate_latency()
        elif message.type == Gst.MessageType.EOS:
            self.on_end()
        else:
            self.on_other(message)

    def on_error(self, source, text, details):
        say(f"error from {source.get_name() if source else 'pipeline'}: {text}")
        print(details, file=sys.stderr)
        self.failed = True
        self.loop.quit()

    def on_warning(self, source, text):
        say(f"warning from {source.get_name() if source else 'pipeline'}: {text}")

    def on_end(self):
        self.loop.quit()

    def on_other(self, message):
        pass


def start_gstreamer():
    """Ends the program if the element is not there."""
    Gst.init(None)
    if Gst.ElementFactory.find("streamdiffusion") is None:
        sys.exit("no element streamdiffusion: set GST_PLUGIN_PATH to the folder of libgststreamdiffusion.so")


def fail(error):
    """Ends the program for a reason that its user can do something about."""
    sys.exit(f"{os.path.basename(sys.argv[0])}: {getattr(error, 'message', error)}")
