#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""A web page with the restyled video, a prompt and sliders, for this machine's browser or a phone in the same network.

The video is sent as one JPEG after another (multipart/x-mixed-replace), which every browser shows in a plain <img>.
Needs nothing but Python's standard library and GStreamer's Python bindings (Debian: python3-gst-1.0).

The server listens on 127.0.0.1 unless told otherwise, and whoever reaches it may change the settings: there is no
password. Pages of other sites cannot: see `Handler.refusal`.
"""

import argparse
import collections
import http.server
import ipaddress
import json
import socket
import sys
import threading
from pathlib import Path

import gi

gi.require_version("Gst", "1.0")
from gi.repository import GLib, Gst  # noqa: E402  (after the version is chosen)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "python"))
from player import Input, Player, add_options, fail, parse_options, say, scaled, start_gstreamer  # noqa: E402
from properties import properties, set_property  # noqa: E402

PAGE = Path(__file__).resolve().parent / "page"
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
HEADERS = {
    # Nothing but what is here, in no other page's frame.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
BOUNDARY = "picture"
# Of a request's body, in bytes.
LONGEST_BODY = 64 * 1024
# Watchers at the same time; each costs a thread.
MOST_WATCHERS = 16


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "input",
        nargs="?",
        default="test",
        help="test, camera, camera:/dev/videoN, a file (played again and again) or a URI (default: test)",
    )
    parser.add_argument("--prompt", help="what it should look like (default: the model's own)")
    add_options(parser)
    parser.add_argument(
        "--quality",
        type=int,
        default=85,
        metavar="N",
        help="of the JPEGs, 1 to 100 (default: 85)",
    )
    parser.add_argument(
        "--bind",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on; 0.0.0.0 lets other machines in, without a password (default: 127.0.0.1)",
    )
    parser.add_argument(
        "--port", type=int, default=8000, help="port to listen on; 0 takes a free one (default: 8000)"
    )
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        help="a host name that the page may be called by, beside localhost and addresses",
    )
    arguments = parse_options(parser)
    if not 1 <= arguments.quality <= 100:
        parser.error("--quality: expected 1 to 100")
    if not 0 <= arguments.port <= 65535:
        parser.error("--port: expected 0 to 65535")
    return arguments


class Video(Player):
    """The pipeline, and the newest picture that came out of it."""

    def __init__(self, arguments):
        source = Input(arguments.input)
        self.is_file = source.is_file
        # Files keep their own pace if the machine can; of what is live, the newest picture counts.
        sync = "true" if self.is_file else "false"
        pipeline = Gst.parse_launch(
            f"{source.description} ! {scaled(arguments.size)} ! {source.queue()}"
            " ! streamdiffusion name=style ! queue max-size-buffers=2 ! videoconvert"
            f" ! jpegenc quality={arguments.quality}"
            f" ! appsink name=sink emit-signals=true drop=true max-buffers=1 sync={sync}"
        )
        source.apply(pipeline)
        super().__init__(pipeline, arguments)
        if arguments.prompt is not None:
            self.element.set_property("prompt", arguments.prompt)
        # What the page shows: all that can be changed while playing.
        self.properties = {p.name: p for p in properties(self.element).values() if p.live}
        # What the element and the rest of the pipeline had to say, the newest last.
        self.messages = collections.deque(maxlen=20)
        self.changed = threading.Condition()
        self.picture = None
        self.number = 0
        self.stopped = False
        pipeline.get_by_name("sink").connect("new-sample", self.on_picture)

    def stopping(self):
        with self.changed:
            self.stopped = True
            self.changed.notify_all()

    def on_picture(self, sink):
        sample = sink.emit("pull-sample")
        if sample is None:
            return Gst.FlowReturn.EOS
        buffer = sample.get_buffer()
        with self.changed:
            self.picture = buffer.extract_dup(0, buffer.get_size())
            self.number += 1
            self.changed.notify_all()
        return Gst.FlowReturn.OK

    def next_picture(self, after):
        """Waits for a picture with another number; None when there will be no more. Slow watchers miss some."""
        with self.changed:
            self.changed.wait_for(lambda: self.stopped or self.number != after)
            return (None, after) if self.stopped else (self.picture, self.number)

    def on_warning(self, source, text):
        self.messages.append(f"{source.get_name() if source else 'pipeline'}: {text}")

    def on_end(self):
        flags = Gst.SeekFlags.FLUSH | Gst.SeekFlags.KEY_UNIT
        if not (self.is_file and self.pipeline.seek_simple(Gst.Format.TIME, flags, 0)):
            say("the input has ended")
            self.loop.quit()

    def on_other(self, message):
        if message.type == Gst.MessageType.ELEMENT and message.src == self.element:
            self.messages.append(message.get_structure().to_string())
        elif message.type == Gst.MessageType.PROGRESS and message.src == self.element:
            self.messages.append(message.parse_progress()[2])

    def controls(self):
        """What can be set, with the values in force."""
        return [
            {
                "name": p.name,
                "nick": p.nick,
                "blurb": p.blurb,
                "kind": p.kind,
                "minimum": p.minimum,
                "maximum": p.maximum,
                "choices": p.choices,
                "value": p.get(self.element),
            }
            for p in self.properties.values()
        ]

    def state(self):
        """All that changes by itself."""
        structure = self.element.get_property("stats")
        names = [structure.nth_field_name(i) for i in range(structure.n_fields())]
        stats = {name: structure.get_value(name) for name in names}
        return {
            "stats": {k: v for k, v in stats.items() if isinstance(v, (bool, int, float, str))},
            "properties": {p.name: p.get(self.element) for p in self.properties.values()},
            "messages": list(self.messages),
        }

    def set(self, values):
        """Sets properties to what a page sent; a ValueError if anything of it is wrong, and then sets none."""
        if not isinstance(values, dict):
            raise ValueError("expected an object of properties and values")
        for name, value in values.items():
            if name not in self.properties:
                raise ValueError(f"there is no property {name!r:.100} that can be changed while playing")
            self.properties[name].check(value)
        for name, value in values.items():
            set_property(self.element, name, value)


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection of a browser."""

    protocol_version = "HTTP/1.1"
    # Seconds for a browser to send its request, or to take what it is sent.
    timeout = 30

    def do_GET(self):
        if self.refuse():
            return
        path = self.path.partition("?")[0]
        if path in FILES:
            name, kind = FILES[path]
            self.reply(200, (PAGE / name).read_bytes(), kind)
        elif path == "/controls":
            self.reply_json(200, self.server.video.controls())
        elif path == "/state":
            self.reply_json(200, self.server.video.state())
        elif path == "/stream":
            self.stream()
        else:
            self.reply_json(404, {"error": "there is nothing here by that name"})

    def do_POST(self):
        # What was not read of a body would be taken for the next request.
        self.close_connection = True
        if self.refuse():
            return
        if self.path != "/properties":
            self.reply_json(404, {"error": "there is nothing here by that name"})
            return
        try:
            length = int(self.headers.get("Content-Length", ""))
        except ValueError:
            length = -1
        if not 0 <= length <= LONGEST_BODY:
            self.reply_json(413, {"error": f"expected at most {LONGEST_BODY} bytes, and their number"})
            return
        try:
            self.server.video.set(json.loads(self.rfile.read(length)))
        except (ValueError, RecursionError) as error:
            self.reply_json(400, {"error": str(error)})
        else:
            self.reply_json(200, self.server.video.state())

    def refuse(self):
        """Answers a request that may not be one of our own page's; whether it was one."""
        why = self.refusal()
        if why is not None:
            self.close_connection = True
            self.reply_json(403, {"error": why})
        return why is not None

    def refusal(self):
        """Why the request is refused, if it is.

        A page of another site may send requests here with its visitor's browser. It cannot forge `Origin`, nor send JSON
        without asking first, which is never granted; and if it lets its own name point to this machine, `Host` shows it.
        """
        host = self.headers.get("Host", "")
        if not self.server.is_known(host):
            return "this server is not known by that name; --name adds one"
        if self.command == "POST":
            origin = self.headers.get("Origin")
            if origin is not None and origin != f"http://{host}":
                return "requests from pages of other sites are refused"
            if self.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
                return "requests from pages of other sites are refused"
            if self.headers.get_content_type() != "application/json":
                return "expected application/json"
        return None

    def stream(self):
        if not self.server.watchers.acquire(blocking=False):
            self.reply_json(503, {"error": f"{MOST_WATCHERS} are watching already"})
            return
        try:
            self.close_connection = True
            self.send_response(200)
            self.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={BOUNDARY}")
            self.send_general_headers()
            self.wfile.write(f"--{BOUNDARY}\r\n".encode())
            picture, number = self.server.video.next_picture(0)
            while picture is not None:
                head = f"Content-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
                # With the boundary that ends it: some browsers show a picture only then.
                self.wfile.write(head.encode() + picture + f"\r\n--{BOUNDARY}\r\n".encode())
                picture, number = self.server.video.next_picture(number)
        except OSError:
            # The browser has gone, or takes nothing any more.
            pass
        finally:
            self.server.watchers.release()

    def reply_json(self, status, value):
        # NaN and infinities are no JSON.
        text = json.dumps(value, allow_nan=False)
        self.reply(status, text.encode(), "application/json")

    def reply(self, status, body, kind):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_general_headers()
        self.wfile.write(body)

    def send_general_headers(self):
        for name, value in HEADERS.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def version_string(self):
        return "streamdiffusion"

    def log_message(self, *_):
        """Says nothing: each page asks once a second."""


class Server(http.server.ThreadingHTTPServer):
    """Takes browsers' connections, each on a thread of its own."""

    daemon_threads = True

    def __init__(self, arguments, video):
        if ":" in arguments.bind:
            self.address_family = socket.AF_INET6
        super().__init__((arguments.bind, arguments.port), Handler)
        self.video = video
        self.names = {name.lower() for name in ["localhost", *arguments.name]}
        self.watchers = threading.Semaphore(MOST_WATCHERS)

    def address(self):
        host, port = self.server_address[:2]
        return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"

    def is_known(self, host):
        """Whether `Host` names this server: by an address, which no foreign site can have, or a known name."""
        name, colon, port = host.rpartition(":")
        if not colon or not port.isdigit():
            name = host
        name = name.strip("[]").lower()
        try:
            ipaddress.ip_address(name)
            return True
        except ValueError:
            return name in self.names

    def handle_error(self, _request, _address):
        # Browsers close connections as they like.
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(_request, _address)


def main():
    arguments = parse_arguments()
    start_gstreamer()
    try:
        video = Video(arguments)
        server = Server(arguments, video)
    except (GLib.Error, ValueError, OSError) as error:
        fail(error)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    say(f"open {server.address()}")
    status = video.run()
    server.shutdown()
    server.server_close()
    sys.exit(status)


if __name__ == "__main__":
    main()
