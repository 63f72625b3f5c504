"""Makes text from files safe for a terminal or a log."""

import logging
import unicodedata

# Controls (C0, C1, DEL), format characters such as those that turn the direction of writing, lone surrogates, and
# separators of lines and paragraphs.
_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_KEPT = frozenset("\n\t\u200c\u200d\u00ad")  # the joiners belong to words of several languages


def printable(text: object) -> str:
    """`str(text)` with terminal control characters replaced by escapes.

    Line ends and tabs are kept. So a record id with ESC in it can neither clear the screen nor write to the clipboard.
    """
    shown = str(text)
    if shown.isascii() and shown.isprintable():
        return shown
    return "".join(character if _is_shown(character) else _escape(character) for character in shown)


class PrintableFormatter(logging.Formatter):
    """Formats log records, including tracebacks, with `printable`."""

    def format(self, record: logging.LogRecord) -> str:
        """The text of a record."""
        return printable(super().format(record))


def _is_shown(character: str) -> bool:
    return character in _KEPT or unicodedata.category(character) not in _HIDDEN_CATEGORIES


def _escape(character: str) -> str:
    code = ord(character)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
