"""An RTSP server for tests: prints its port, plays what it is told at /in, writes H.264 that is sent to /out to a file.

Usage: rtsp.py LAUNCH FILE, where LAUNCH is what gst-rtsp-server's factories take, with a payloader named pay0.
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

RECORD = "( rtph264depay name=depay0 ! h264parse ! video/x-h264,stream-format=byte-stream,alignment=au ! filesink buffer-mode=unbuffered location={} )"


def main():
    launch, file = sys.argv[1:]
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service("0")
    play = GstRtspServer.RTSPMediaFactory()
    play.set_launch(launch)
    play.set_shared(True)
    record = GstRtspServer.RTSPMediaFactory()
    record.set_transport_mode(GstRtspServer.RTSPTransportMode.RECORD)
    record.set_launch(RECORD.format(file))
    points = server.get_mount_points()
    points.add_factory("/in", play)
    points.add_factory("/out", record)
    server.attach(None)
    print(server.get_bound_port(), flush=True)
    GLib.MainLoop().run()


main()
