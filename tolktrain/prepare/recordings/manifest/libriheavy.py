"""The cuts of Libriheavy as published, read as plain JSON: a line for each utterance, without the Lhotse library."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from tolktrain.prepare.recordings.audio import TOLERANCE_SECONDS
from tolktrain.prepare.recordings.manifest.entry import failure_of, utterance_of
from tolktrain.prepare.recordings.manifest.format import Format, Manifest, Seen
from tolktrain.prepare.recordings.manifest.lines import json_of, read_lines
from tolktrain.prepare.unused import Unused
from tolktrain.prepare.utterances import EntryError, Failure, Reason, Utterance

SUPERVISION_KEYS: Mapping[str, Any] = MappingProxyType({
    **dict.fromkeys(("id", "recording_id", "start", "duration", "channel", "text", "speaker")),
    "alignment": {"word": None},
})  # fmt: skip
CUT_KEYS: Mapping[str, Any] = MappingProxyType({
    **dict.fromkeys(("id", "start", "duration", "channel", "recording", "type")),
    "supervisions": SUPERVISION_KEYS,
})  # fmt: skip
_KEYS = MappingProxyType({**CUT_KEYS, "supervisions": {**SUPERVISION_KEYS, "custom": {"texts": None}}})
_SILENCE = ("", "<eps>", "SIL", "<sil>")


def read_libriheavy(manifest: Manifest) -> Iterator[Utterance | Failure]:
    """A cut with one supervision on each line.

    The text is the first of the supervision's custom.texts, which is cased and punctuated; without any, its `text`. The
    source is the recording. Word times, wanted `with_words`, are the supervision's alignment.word where there is one.
    Keys that are not used are counted.
    """
    for number, line in read_lines(manifest.path):
        cut = None
        place = f"line {number}"
        try:
            cut = json_of(line)
            note_unused(cut, _KEYS, manifest.unused, place)
            yield utterance_of(_entry(cut, manifest.with_words), manifest.root, manifest.unused, place)
        except EntryError as error:
            yield failure_of(error, cut, place)


def _entry(cut: Any, with_words: bool) -> dict[str, Any]:
    supervisions = value_at(cut, "supervisions")
    if not isinstance(supervisions, list) or len(supervisions) != 1:
        raise _bad(f"expected one supervision, got {supervisions!r:.80}")
    supervision = supervisions[0]
    begin = _seconds(cut, "start") + _seconds(supervision, "start")
    alignment = value_at(supervision, "alignment", "word", or_none=True)
    if value_at(cut, "recording", "transforms", or_none=True):
        raise _bad("the recording has transforms; save its audio and make a manifest of that")
    own_channel = value_at(supervision, "channel", or_none=True)
    if own_channel is not None and own_channel != value_at(cut, "channel", or_none=True):
        raise _bad(f"the supervision is of channel {own_channel!r:.80}, and the cut is not")
    begin, duration = within(begin, value_at(supervision, "duration"))
    audio, channel = source_of(value_at(cut, "recording", "sources"), value_at(cut, "channel", or_none=True))
    return {
        "id": value_at(cut, "id"),
        "audio": audio,
        "offset": round(begin, 8),
        "duration": duration,
        "text": _transcript(supervision),
        "speaker": value_at(supervision, "speaker", or_none=True),
        "source": value_at(cut, "recording", "id"),
        "channel": channel,
        "words": relative_words(alignment, begin) if with_words else None,
    }


def _transcript(supervision: Any) -> Any:
    texts = value_at(supervision, "custom", "texts", or_none=True)
    if isinstance(texts, list) and texts:
        return texts[0]
    return value_at(supervision, "text", or_none=True)


def value_at(tree: Any, *keys: str, or_none: bool = False) -> Any:
    """The value below some keys. Raises `EntryError` that names them if there is none, unless `or_none`."""
    for key in keys:
        if not isinstance(tree, dict) or key not in tree:
            if or_none:
                return None
            raise _bad(f"{'.'.join(keys)} is missing; a line must hold a cut as Lhotse writes it")
        tree = tree[key]
    return tree


def source_of(sources: Any, channel: Any) -> tuple[str, int | None]:
    """The file that has a channel of a recording, and the place of the channel in it; None if it has only that one."""
    if not isinstance(sources, list) or not sources:
        raise _bad(f"recording.sources must list files, got {sources!r:.80}")
    for source in sources:
        channels = value_at(source, "channels", or_none=True)
        if not isinstance(channels, list) or not all(isinstance(one, int) for one in channels):
            raise _bad(f"recording.sources.channels must be a list of numbers, got {channels!r:.80}")
        if channel is not None and channel not in channels:
            continue
        if channel is None and len(sources) > 1:
            raise _bad("the channels of the recording are in several files; name one")
        if value_at(source, "type") != "file":
            raise _bad(f"audio is read from files only, not from a source of type {source['type']!r:.80}")
        place = None if channel is None or len(channels) == 1 else channels.index(channel)
        return value_at(source, "source"), place
    raise _bad(f"no source of the recording has the channel {channel!r:.80}")


def note_unused(item: Any, used: Mapping[str, Any], unused: Unused, place: str, path: str = "") -> None:
    """Count the keys of a cut, supervision or recording that no reader uses, and that have a value.

    `used` has the keys that are used, or that say the same as others, each with those inside of it, or None.
    """
    for one in item if isinstance(item, list) else [item]:
        for key, value in one.items() if isinstance(one, dict) else ():
            if key in used:
                if used[key] is not None:
                    note_unused(value, used[key], unused, place, f"{path}{key}.")
            elif value not in (None, "", [], {}):
                unused.add(f"the key {path + str(key)!r:.80}", place)


def within(begin: float, duration: Any) -> tuple[float, Any]:
    """Begin and duration of a piece that begins a little before its recording, without what is not there."""
    if not -TOLERANCE_SECONDS <= begin < 0 or not _is_number(duration):
        return begin, duration
    return 0.0, round(duration + begin, 8)


def relative_words(alignment: Any, begin: float) -> list[list[Any]] | None:
    """Words as manifests have them, from [symbol, start, duration, score] with times of the recording.

    Lhotse counts alignments from the beginning of the recording even where the supervision is counted from the cut's.
    """
    if alignment is None or alignment == []:
        return None
    if not isinstance(alignment, list):
        raise _bad(f"alignment.word must be a list, got {alignment!r:.80}")
    words = []
    for item in alignment:
        if not isinstance(item, Sequence) or isinstance(item, str) or len(item) < 3:
            raise _bad(f"expected [word, start, duration] in alignment.word, got {item!r:.80}")
        text, start, duration = item[:3]
        if not _is_number(start) or not _is_number(duration):
            raise _bad(f"start and duration must be numbers in alignment.word, got {item!r:.80}")
        if text not in _SILENCE:
            # Sums of decimal fractions are off by a little, and would begin before the utterance.
            relative = round(start - begin, 6) + 0.0
            first = 0.0 if -TOLERANCE_SECONDS <= relative < 0 else relative
            words.append([text, first, round(start - begin + duration, 6) + 0.0])
    return words or None


def _seconds(tree: Any, key: str) -> float:
    value = value_at(tree, key)
    if not _is_number(value):
        raise _bad(f"{key} must be a number of seconds, got {value!r:.80}")
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15


def _bad(detail: str) -> EntryError:
    return EntryError(Reason.MANIFEST, detail)


def has_texts(supervisions: Any) -> bool:
    """Whether supervisions are Libriheavy's, which have several forms of their text."""
    first = supervisions[0] if isinstance(supervisions, list) and supervisions else None
    return value_at(first, "custom", "texts", or_none=True) is not None


def _recognizes(seen: Seen) -> bool:
    return has_texts(seen.telling.get("supervisions"))


FORMAT = Format(read_libriheavy, _recognizes)
