"""Manifests of the Lhotse library: cuts, or recordings with supervisions."""

import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tolktrain.errors import UserError
from tolktrain.prepare.recordings.audio import TOLERANCE_SECONDS
from tolktrain.prepare.recordings.manifest.entry import failure_of, utterance_of
from tolktrain.prepare.recordings.manifest.format import Format, Manifest, Seen
from tolktrain.prepare.recordings.manifest.libriheavy import (
    CUT_KEYS,
    SUPERVISION_KEYS,
    has_texts,
    note_unused,
    relative_words,
    source_of,
    within,
)
from tolktrain.prepare.recordings.manifest.lines import json_of, read_lines
from tolktrain.prepare.utterances import EntryError, Failure, Reason, Utterance

if TYPE_CHECKING:
    from lhotse import MonoCut, MultiCut, Recording, SupervisionSegment

SUFFIXES = (".jsonl", ".jsonl.gz")
_ROUNDING = 1e-6  # seconds, of sums
_NAMES = ("cuts", "supervisions", "recordings")


def read_lhotse(manifest: Manifest) -> Iterator[Utterance | Failure]:
    """Each supervision of a file of cuts, or of supervisions with a file of recordings.

    `path` is a file, or a folder or the common beginning of the names of files, in which each
    PREFIX_supervisions_SUFFIX.jsonl.gz has its PREFIX_recordings_SUFFIX.jsonl.gz, or all are cuts. A cut without
    supervisions is an utterance without text. The source is the recording. Word times, wanted `with_words`, are the
    supervision's alignment "word". Raises `UserError` if Lhotse is not installed or files are missing.
    """
    try:
        import lhotse  # noqa: F401
    except ImportError:
        raise UserError("reading Lhotse manifests needs the library; pip install lhotse") from None
    files = manifest_files(manifest.path)
    root = manifest.audio_root or (manifest.path if os.path.isdir(manifest.path) else manifest.root)
    for supervisions in files:
        place = f"{os.path.basename(supervisions)} " if len(files) > 1 else ""
        recordings = _recordings(_partner(supervisions)) if "supervisions" in os.path.basename(supervisions) else None
        used: set[str] = set()
        for number, line in read_lines(supervisions):
            yield from _read_line(line, recordings, root, f"{place}line {number}", manifest, used)
        for name in sorted((recordings or {}).keys() - used):
            manifest.unused.add("recordings without supervisions", name)


def _read_line(
    line: bytes,
    recordings: "dict[str, Recording] | None",
    root: str,
    place: str,
    manifest: Manifest,
    used: set[str],
) -> Iterator[Utterance | Failure]:
    item = None
    try:
        item = json_of(line)
        note_unused(item, CUT_KEYS if recordings is None else SUPERVISION_KEYS, manifest.unused, place)
        pieces = _pieces(item, recordings)
    except EntryError as error:
        yield failure_of(error, item, place)
        return
    for piece in pieces:
        used.add(str(piece.recording.id))
        try:
            yield utterance_of(_entry(piece, manifest.with_words), root, manifest.unused, place)
        except EntryError as error:
            yield failure_of(error, {"id": piece.id}, place)


def manifest_files(path: str) -> list[str]:
    """The files of cuts, or else of supervisions, that `path` denotes. Raises `UserError` if there are none."""
    if os.path.isfile(path):
        name = os.path.basename(path)
        if not name.endswith(SUFFIXES):
            raise UserError(f"{path} must end in {' or '.join(SUFFIXES)}; convert it with 'lhotse copy'")
        return [os.path.join(os.path.dirname(path), name.replace("recordings", "supervisions"))]
    beginning = os.path.join(path, "") if os.path.isdir(path) else path
    found = [name for name in sorted(glob.glob(glob.escape(beginning) + "*")) if name.endswith(SUFFIXES)]
    kinds = {kind: [name for name in found if kind in os.path.basename(name)] for kind in ("cuts", "supervisions")}
    if bool(kinds["cuts"]) == bool(kinds["supervisions"]):
        seen = ", ".join(os.path.basename(name) for name in found[:8]) or "none with these endings"
        raise UserError(
            f"{path} must be a file of cuts, or the folder or beginning of files of cuts, or of supervisions with"
            f" recordings, ending in {' or '.join(SUFFIXES)}; found {seen}"
        )
    return kinds["cuts"] or kinds["supervisions"]


def _partner(supervisions: str) -> str:
    folder, name = os.path.split(supervisions)
    path = os.path.join(folder, name.replace("supervisions", "recordings"))
    if not os.path.isfile(path):
        raise UserError(f"{path} does not exist; {supervisions} needs the recordings")
    return path


def _recordings(path: str) -> "dict[str, Recording]":
    from lhotse import Recording

    recordings: dict[str, Recording] = {}
    for number, line in read_lines(path):
        try:
            recording = _deserialized(json_of(line))
        except EntryError as error:
            raise UserError(f"{path} line {number}: {error.detail}") from None
        if not isinstance(recording, Recording):
            raise UserError(f"{path} line {number} is a {type(recording).__name__}, expected a recording")
        if recordings.setdefault(str(recording.id), recording) != recording:
            raise UserError(f"{path} line {number}: the recording {recording.id!r} is described before, differently")
    return recordings


@dataclass(frozen=True)
class _Piece:
    """A supervision in its recording. Values may be of any type, for the library does not check them."""

    id: Any
    supervision: "SupervisionSegment"
    recording: "Recording"
    cut: "MonoCut | MultiCut | None"  # that the supervision is counted from; None: from the recording


def _pieces(item: Any, recordings: "dict[str, Recording] | None") -> list[_Piece]:
    """The utterances of a line."""
    from lhotse import MonoCut, MultiCut, SupervisionSegment

    manifest = _deserialized(item)
    if recordings is not None:
        if not isinstance(manifest, SupervisionSegment):
            raise _bad(f"expected a supervision, got a {type(manifest).__name__}")
        recording = recordings.get(str(manifest.recording_id))
        if recording is None:
            raise _bad(f"the recording {manifest.recording_id!r} is not among the recordings")
        return [_Piece(manifest.id, manifest, recording, None)]
    if not isinstance(manifest, (MonoCut, MultiCut)):
        raise _bad(f"expected a cut of one recording, got a {type(manifest).__name__}")
    recording = manifest.recording
    if recording is None:
        raise _bad("the cut has no recording; features alone are not read")
    if not manifest.supervisions:
        whole = SupervisionSegment(manifest.id, recording.id, 0.0, manifest.duration, manifest.channel)
        return [_Piece(manifest.id, whole, recording, manifest)]
    alone = len(manifest.supervisions) == 1
    return [_Piece(manifest.id if alone else one.id, one, recording, manifest) for one in manifest.supervisions]


def _deserialized(item: Any) -> Any:
    from lhotse.serialization import deserialize_item

    if not isinstance(item, dict):
        raise _bad(f"expected an object, got {item!r:.80}")
    try:
        return deserialize_item(dict(item))
    except Exception as error:  # the library lets all kinds escape
        raise _bad(
            f"Lhotse does not accept it as a cut, recording or supervision ({type(error).__name__}: {error}); check"
            " recordings.format"
        ) from None


def _entry(piece: _Piece, with_words: bool) -> dict[str, Any]:
    """An entry of a manifest."""
    try:
        return _checked_entry(piece, with_words)
    except (TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise _bad(f"it has values of the wrong type ({error})") from None


def _checked_entry(piece: _Piece, with_words: bool) -> dict[str, Any]:
    supervision, recording, cut = piece.supervision, piece.recording, piece.cut
    begin = supervision.start
    if cut is not None:
        _check_belongs(supervision, recording, cut)
        # Manifests round, and codecs pad: what is a little too long for its cut is read to its end.
        beyond = max(-begin, begin + supervision.duration - cut.duration)
        if not beyond <= TOLERANCE_SECONDS + _ROUNDING:
            raise _bad(
                f"the supervision {supervision.id!r} reaches out of its cut by {beyond:.3f} s; at most"
                f" {TOLERANCE_SECONDS:g} s are taken"
            )
        begin += cut.start
    if recording.transforms:
        raise _bad("the recording has transforms; save its audio and make a manifest of that")
    channels = supervision.channel if isinstance(supervision.channel, list) else [supervision.channel]
    together = len(channels) > 1
    if together and sorted(channels) != sorted(recording.channel_ids or ()):
        raise _bad(f"the channels {channels} are some of the recording's; name one or all")
    files = [{"type": one.type, "channels": one.channels, "source": one.source} for one in recording.sources]
    begin, duration = within(begin, supervision.duration)
    audio, channel = source_of(files, None if together else channels[0])
    alignment = (supervision.alignment or {}).get("word") if with_words else None
    return {
        "id": piece.id,
        "audio": audio,
        "offset": round(begin, 8),
        "duration": duration,
        "text": supervision.text,
        "speaker": supervision.speaker,
        "source": recording.id,
        "channel": channel,
        "words": relative_words(alignment, begin),
    }


def _check_belongs(supervision: "SupervisionSegment", recording: "Recording", cut: "MonoCut | MultiCut") -> None:
    """Raise `EntryError` if a supervision is of another recording or channel than its cut, which Lhotse would load."""
    if supervision.recording_id != recording.id:
        raise _bad(
            f"the supervision {supervision.id!r} is of the recording {supervision.recording_id!r:.80}, and its cut of"
            f" {recording.id!r:.80}; correct recording_id, or move the supervision to the cut of its recording"
        )
    of_cut, own = ({*one} if isinstance(one, list) else {one} for one in (cut.channel, supervision.channel))
    if not own <= of_cut:
        raise _bad(
            f"the supervision {supervision.id!r} is of channel {supervision.channel}, and its cut of channel"
            f" {cut.channel}; correct one of them, or move the supervision to the cut of its channel"
        )


def _bad(detail: str) -> EntryError:
    return EntryError(Reason.MANIFEST, detail)


def _recognizes(seen: Seen) -> bool:
    """By the names of files; a single file by its objects."""
    if not seen.is_file:
        return any(map(_is_name, seen.names))
    item = seen.telling
    is_lhotse = "supervisions" in item or "recording_id" in item or "sources" in item
    return is_lhotse and not has_texts(item.get("supervisions"))


def _is_name(path: str) -> bool:
    name = os.path.basename(path)
    return name.endswith(SUFFIXES) and any(kind in name for kind in _NAMES)


FORMAT = Format(read_lhotse, _recognizes, is_folder=None)
