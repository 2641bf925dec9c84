"""Frames arrive whole, in order, or not at all."""

from io import BytesIO

import pytest

from privtrain.runtimes.processes.frames import (
    FrameWriter,
    Kind,
    frames,
    pack_beat,
    read_frame,
    unpack_beat,
)


def written(*bodies: bytes) -> bytes:
    stream = BytesIO()
    for body in bodies:
        FrameWriter(stream).write(Kind.JOB, body)
    return stream.getvalue()


def test_frames_arrive_whole_and_in_order() -> None:
    bodies = (b"", b"one", bytes(range(256)) * 300)
    assert list(frames(BytesIO(written(*bodies)))) == [(Kind.JOB, body) for body in bodies]


@pytest.mark.parametrize("length", [0, 1, 8, 9, 11])
def test_half_a_frame_is_none(length: int) -> None:
    assert read_frame(BytesIO(written(b"one")[:length])) is None


def test_heartbeats_carry_progress() -> None:
    assert unpack_beat(pack_beat(3, 10)) == (3, 10)
