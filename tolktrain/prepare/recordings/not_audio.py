"""Recognizes files that contain something else than audio, such as the page of an error that was saved as audio."""

import re

HEAD_BYTES = 1024
"""So much of the beginning of a file is enough to recognize it."""

# Text at the beginning of audio.
_AUDIO_AS_TEXT = (b"NIST_1A", b"PVF1", b"MATLAB 5")
_NOT_TEXT = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_HTML = re.compile(r"(<\?xml[^>]*>|<!--.*?-->|\s)*<(!doctype\s+html|html|head|body)\b", re.DOTALL)
_FEWEST_PER_WRONG_CHARACTER = 20  # other encodings than UTF-8 are text as well
_CONTAINERS = (
    (0, b"\x1f\x8b", "compressed with gzip; unpack it"),
    (0, b"PK\x03\x04", "a ZIP archive; unpack it"),
    (0, b"\xfd7zXZ\0", "compressed with xz; unpack it"),
    (0, b"(\xb5/\xfd", "compressed with zstd; unpack it"),
    (0, b"BZh", "compressed with bzip2; unpack it"),
    (0, b"Rar!", "a RAR archive; unpack it"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it"),
    (0, b"\x93NUMPY", "an array of NumPy, not audio"),
    (0, b"MThd", "a MIDI file, which contains notes, not audio"),
    (0, b"%PDF", "a PDF document, not audio"),
    (0, b"\x89PNG", "an image (PNG), not audio"),
    (0, b"\xff\xd8\xff", "an image (JPEG), not audio"),
    (0, b"GIF8", "an image (GIF), not audio"),
    (257, b"ustar", "a tar archive; unpack it"),
    (4, b"ftyp", "MP4 or M4A, which is not decoded"),
    (0, b"\x1aE\xdf\xa3", "Matroska or WebM, which is not decoded"),
    (0, b"0&\xb2u\x8ef\xcf\x11", "WMA or another ASF file, which is not decoded"),
    (0, b"#!AMR", "AMR, which is not decoded"),
    (0, b"wvpk", "WavPack, which is not decoded"),
    (0, b"MAC ", "Monkey's Audio, which is not decoded"),
    (0, b"DSD ", "DSD audio, which is not decoded"),
    (0, b"TTA1", "True Audio, which is not decoded"),
    (0, b".RMF", "RealMedia, which is not decoded"),
    (0, b"FLV\x01", "Flash video, which is not decoded"),
)
_CONVERT = "; convert it with `ffmpeg -i IN OUT.flac`"
_DOWNLOAD = "; download or copy the audio again"


def content_instead_of_audio(head: bytes) -> str | None:
    """What a file contains instead of audio, and the correction, by its first `HEAD_BYTES`; None if it may be audio."""
    for place, magic, name in _CONTAINERS:
        if head[place:].startswith(magic):
            return f"is {name}{_CONVERT if name.endswith('decoded') else ''}"
    # ADTS has MPEG's sync with layer 0.
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return f"is AAC (ADTS), which is not decoded{_CONVERT}"
    if head.startswith(_AUDIO_AS_TEXT):
        return None
    text = _text(head)
    if text is None:
        return None
    return f"contains {_kind_of_text(text)}, not audio ({' '.join(text.split())[:60]!r}){_DOWNLOAD}"


def _text(head: bytes) -> str | None:
    """The beginning of a text file; None if it is none."""
    for mark, encoding in ((b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"), (b"", "utf-8-sig")):
        if head.startswith(mark):
            # The last character may be incomplete.
            text = (
                head[: len(head) - (len(head) % 2 if mark else 0)]
                .decode(encoding, "replace")
                .lstrip("\ufeff")
                .removesuffix("\ufffd")
            )
            break
    is_text = text.strip() and _NOT_TEXT.search(text) is None
    return text if is_text and text.count("\ufffd") * _FEWEST_PER_WRONG_CHARACTER <= len(text) else None


def _kind_of_text(text: str) -> str:
    begin = text.lstrip().lower()
    if _HTML.match(begin):
        return "an HTML page"
    if begin.startswith("<"):
        return "XML"
    if begin.startswith(("{", "[")):
        return "JSON"
    if begin.startswith("version https://git-lfs"):
        return "a pointer of Git LFS (run `git lfs pull`)"
    return "text"
