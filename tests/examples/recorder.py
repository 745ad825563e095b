"""An RTSP server that takes streams, for `tests/examples/rtsp.rs`: tells its address, then each tenth frame it gets.

usage: recorder.py PORT (0: a free one)
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402  (after the versions are chosen)

Gst.init(None)
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service(sys.argv[1])
factory = GstRtspServer.RTSPMediaFactory()
factory.set_transport_mode(GstRtspServer.RTSPTransportMode.RECORD)
factory.set_launch("( rtph264depay name=depay0 ! avdec_h264 ! identity name=count ! fakesink async=false sync=false )")
streams = 0


def configure(_factory, media):
    global streams
    streams += 1
    number, frames = streams, 0

    def count(*_):
        nonlocal frames
        frames += 1
        if frames % 10 == 0:
            print(f"stream {number}: {frames} frames", flush=True)

    media.get_element().get_by_name("count").connect("handoff", count)


factory.connect("media-configure", configure)
server.get_mount_points().add_factory("/in", factory)
if not server.attach(None):
    sys.exit(f"cannot listen on port {sys.argv[1]}")
print(f"rtsp://127.0.0.1:{server.get_bound_port()}/in", flush=True)
GLib.MainLoop().run()
