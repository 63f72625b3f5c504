"""MP3 and Ogg files, decoded once from the beginning to the end, because libsndfile seeks in them inexactly, silently.

In MP3 of variable bit rate it lands where the header's rough table points, in the last page of Vorbis some hundred
samples off, and after a jump Opus has not settled. And where an MP3 file has no header, it estimates the length from
the first frame and never reads beyond: such a file is fed through a pipe, whose length it does not estimate.
"""

import io
import os
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tolktrain.cluster.threads import guarded
from tolktrain.files.reading import open_regular

if TYPE_CHECKING:
    from soundfile import SoundFile

UNKNOWN_FRAMES = 1 << 60
"""A number of frames from here on means that the file does not contain it."""

_CHUNK_BYTES = 1 << 16


def open_audio(file: "str | int | FileRange", **options: Any) -> "SoundFile":
    """Open a path, or a descriptor or range, which stays the caller's; options as of soundfile, and what it raises."""
    import soundfile

    class Sequential(soundfile.SoundFile):
        def seekable(self) -> bool:
            # Otherwise each read ends with a seek to its own end, after which MP3 continues at another place.
            return False

    return Sequential(file, closefd=isinstance(file, str), **options)


def open_raw(part: "FileRange", like: "SoundFile", endian: str) -> "SoundFile":
    """Open bytes of uncompressed audio that has the rate, the channels and the coding of another file."""
    return open_audio(
        part, format="RAW", subtype=like.subtype, samplerate=like.samplerate, channels=like.channels, endian=endian
    )


class FileRange(io.RawIOBase):
    """A part of a file, as a file that soundfile can read."""

    def __init__(self, path: str, begin: int, end: int) -> None:
        """Bytes `begin` to `end` of a path. Raises OSError."""
        self._file = open_regular(path)
        self._begin, self._size = begin, end - begin
        self._position = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See `io.IOBase`."""
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        """See `io.IOBase`."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """See `io.RawIOBase`."""
        wanted = max(0, min(len(buffer), self._size - self._position))
        self._file.seek(self._begin + self._position)
        got = self._file.readinto(memoryview(buffer)[:wanted])  # type: ignore[attr-defined]
        self._position += got
        return int(got)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


class AudioStream:
    """The audio of a file in order. `position` counts the samples already read."""

    def __init__(self, path: str, container: str) -> None:
        """Open a file of a container, MP3 or OGG. Raises what soundfile and `open` raise."""
        self.path = path
        self.container = container
        self.position = 0
        self.frames: int | None = None  # as the file has it
        self._feed: _Feed | None = None
        begin, size = _stream_bytes(path) if container == "MP3" else (0, None)
        if container == "MP3" and size is None:
            self._feed = _Feed(path, begin)
            self._audio = self._feed.audio
            if self._audio.frames >= UNKNOWN_FRAMES:
                return
            self._feed.close()  # another kind of header: read as a file, the length is known
            self._feed = None
        self._audio = open_audio(path)
        self.frames = int(self._audio.frames)

    @property
    def sample_rate(self) -> int:
        """Samples per second."""
        return int(self._audio.samplerate)

    @property
    def channels(self) -> int:
        """Channels of the file."""
        return int(self._audio.channels)

    def read(self, frames: int) -> npt.NDArray[np.float32]:
        """The next samples [n, channels]; fewer than `frames`, or none, at the end.

        Raises:
            OSError: the file could not be read to its end.
        """
        try:
            block: npt.NDArray[np.float32] = self._audio.read(frames, dtype="float32", always_2d=True)
        finally:
            if self._feed is not None:  # the decoder's message about a file that ends too soon does not give the cause
                self._feed.check()
        self.position += len(block)
        return block

    def close(self) -> None:
        """Close the file."""
        if self._feed is not None:
            self._feed.close()
        else:
            self._audio.close()


class _Feed:
    """An audio file that a thread feeds through a pipe."""

    audio: "SoundFile"

    def __init__(self, path: str, begin: int) -> None:
        file = open_regular(path)  # closed by the thread
        file.seek(begin)
        self._read_end, write_end = os.pipe()
        self._failure: BaseException | None = None
        self._thread = guarded("audio-feed", lambda: self._copy(file, write_end))
        self._thread.start()
        try:
            self.audio = open_audio(self._read_end)
        except BaseException:
            self._release()
            raise

    def check(self) -> None:
        """Raise the error that kept the thread from feeding the whole file."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        self.audio.close()
        self._release()

    def _release(self) -> None:
        os.close(self._read_end)  # what the thread still writes is refused, and it ends
        self._thread.join()

    def _copy(self, file: IO[bytes], write_end: int) -> None:
        with file, os.fdopen(write_end, "wb", buffering=0) as pipe:
            try:
                while chunk := file.read(_CHUNK_BYTES):
                    view = memoryview(chunk)
                    while view:
                        view = view[pipe.write(view) :]
            except BrokenPipeError:
                pass  # the reader has closed its end
            except BaseException as error:
                self._failure = error  # before the pipe is closed, which the reader takes for the file's end


def _stream_bytes(path: str) -> tuple[int, int | None]:
    """Where the first frame begins, and how long the audio is in bytes if a Xing or Info header has it."""
    with open_regular(path) as file:
        begin, frame = _frame(file, 0)
        tag = max(frame.find(b"Xing", 0, 200), frame.find(b"Info", 0, 200))
        has_frames, has_bytes = (frame[tag + 7] & 1, frame[tag + 7] & 2) if 0 <= tag < len(frame) - 16 else (0, 0)
        if not has_bytes:
            return begin, None
        place = tag + (12 if has_frames else 8)
        size = int.from_bytes(frame[place : place + 4], "big")
    return begin, size


def _frame(file: Any, begin: int) -> tuple[int, bytes]:
    """The place after an ID3v2 tag, if one is at `begin`, and what follows it."""
    file.seek(begin)
    head = file.read(10)
    if len(head) == 10 and head[:3] == b"ID3":
        begin += 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
    file.seek(begin)
    return begin, file.read(512)
