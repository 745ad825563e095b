"""An RTMP server for one publisher, by the FFmpeg library that GStreamer's own plugin uses: prints how many packets came.

Usage: rtmp.py URL
"""

import ctypes
import ctypes.util
import sys


def library(name):
    path = ctypes.util.find_library(name)
    if path is None:
        sys.exit(f"lib{name} is missing; it comes with gstreamer1.0-libav")
    return ctypes.CDLL(path)


def main():
    url = sys.argv[1].encode()
    util, codec, format_ = library("avutil"), library("avcodec"), library("avformat")
    codec.av_packet_alloc.restype = ctypes.c_void_p
    options, context = ctypes.c_void_p(), ctypes.c_void_p()
    util.av_dict_set(ctypes.byref(options), b"listen", b"1", 0)
    opened = format_.avformat_open_input(ctypes.byref(context), url, None, ctypes.byref(options))
    if opened < 0:
        sys.exit(f"avformat_open_input: {opened}")
    packet = ctypes.c_void_p(codec.av_packet_alloc())
    packets = 0
    while format_.av_read_frame(context, packet) >= 0:
        packets += 1
        codec.av_packet_unref(packet)
    print(packets)


main()
