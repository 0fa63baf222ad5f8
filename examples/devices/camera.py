r"""A camera or a video file, through OpenCV or GStreamer, whichever is installed.

    python -m examples.devices.camera 0                      the first camera
    python -m examples.devices.camera film.mp4               a file
    python -m examples.devices.camera --gstreamer \
        'v4l2src ! videoconvert ! video/x-raw,format=RGB ! appsink name=frames'

Neither is a dependency of Isthmus: `pip install opencv-python-headless`, or the system's python3-gi with GStreamer's
plug-ins. Frames are taken as they come and the newest is asked about: what was missed is missed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from edge_agent.local_client import LocalClient
from examples.devices.asking import ended, parser, watch
from protocol.errors import InputError
from protocol.tensors import Array

APPSINK = "appsink name=frames"


def main() -> None:
    options = parser(__doc__)
    options.add_argument("source", help="number of a camera, a file, or a GStreamer pipeline")
    options.add_argument("--gstreamer", action="store_true", help="SOURCE is a pipeline or a file for GStreamer")
    given = options.parse_args()
    frames = through_gstreamer(given.source) if given.gstreamer else through_opencv(given.source)
    with LocalClient(given.socket) as client:
        watch(frames, client, deadline_s=given.deadline_ms / 1e3, limit=given.limit)


def through_opencv(source: str) -> Iterator[Array]:
    """RGB frames of a camera (by number) or a file. Raises InputError if there are none to be had."""
    try:
        import cv2  # type: ignore[import-not-found]
    except ImportError as error:
        raise InputError(
            f"OpenCV is not installed ({error})", "pip install opencv-python-headless, or use --gstreamer"
        ) from None
    video = cv2.VideoCapture(int(source) if source.isdigit() else source)
    if not video.isOpened():
        raise InputError(f"OpenCV cannot open {source}", "name a camera by its number, or a file that it can read")
    if source.isdigit():
        video.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the newest frame, not one that waited
    return _read(video, cv2)


def _read(video: Any, cv2: Any) -> Iterator[Array]:
    try:
        while True:
            there, frame = video.read()
            if not there:
                return
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
    finally:
        video.release()


def through_gstreamer(source: str) -> Iterator[Array]:
    """RGB frames of a pipeline that ends in `appsink name=frames`, or of a file. Raises InputError."""
    try:
        import gi  # type: ignore[import-not-found]

        gi.require_version("Gst", "1.0")
        gi.require_version("GstApp", "1.0")
        from gi.repository import GLib, Gst, GstApp  # type: ignore[import-not-found]  # noqa: F401 - it gives the sink its methods
    except (ImportError, ValueError) as error:
        raise InputError(
            f"GStreamer's bindings are not installed ({error})",
            "apt install python3-gi gir1.2-gst-plugins-base-1.0, or leave out --gstreamer",
        ) from None
    Gst.init(None)
    text = (
        source
        if "!" in source
        else f'filesrc location="{source}" ! decodebin ! videoconvert ! video/x-raw,format=RGB ! {APPSINK}'
    )
    if APPSINK not in text:
        raise InputError("the pipeline hands its frames to nobody", f"let it end in video/x-raw,format=RGB ! {APPSINK}")
    try:
        pipeline = Gst.parse_launch(text)
    except GLib.Error as error:
        raise InputError(
            f"GStreamer cannot build the pipeline ({error.message})", "try it with gst-launch-1.0"
        ) from None
    return _pull(pipeline, Gst)


def _pull(pipeline: Any, gst: Any) -> Iterator[Array]:
    sink = pipeline.get_by_name("frames")
    sink.set_property("max-buffers", 1)
    sink.set_property("drop", True)
    pipeline.set_state(gst.State.PLAYING)
    try:
        while (sample := sink.emit("pull-sample")) is not None:
            form = sample.get_caps().get_structure(0)
            height, width = form.get_value("height"), form.get_value("width")
            buffer = sample.get_buffer()
            data = buffer.extract_dup(0, buffer.get_size())
            stride = len(data) // height  # rows are padded to four bytes
            yield np.frombuffer(data, np.uint8).reshape(height, stride)[:, : width * 3].reshape(height, width, 3)
    finally:
        pipeline.set_state(gst.State.NULL)


if __name__ == "__main__":
    ended(main)
