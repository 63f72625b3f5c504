"""Packs conversations into records, each of which becomes one sequence."""

from collections.abc import Mapping, Sequence

from tolktrain.config.data import Strategy
from tolktrain.data.records import Record, RecordKind
from tolktrain.data.turns import Conversation, record_of


class Packer:
    """Joins consecutive conversations as long as they fit into a sequence under every strategy."""

    def __init__(self, source: str, kind: RecordKind, size: int, num_codebooks: int) -> None:
        """`size` is the number of tokens of a sequence."""
        self._source = source
        self._kind = kind
        self._size = size
        self._num_codebooks = num_codebooks
        self._identity = ""
        self._conversations: list[Conversation] = []
        self._totals: dict[Strategy, int] = {}

    def add(
        self, identity: str, conversations: Sequence[Conversation], num_tokens: Mapping[Strategy, int]
    ) -> Record | None:
        """Add a conversation, or the two of a preference; returns the record that is complete without it, if any.

        Args:
            identity: of the conversation, unique in the set.
            conversations: one, or chosen and rejected.
            num_tokens: most tokens under each strategy.
        """
        totals = {name: self._totals.get(name, 0) + count for name, count in num_tokens.items()}
        record = None
        if self._conversations and max(totals.values()) > self._size:
            record, totals = self.rest(), dict(num_tokens)
        if not self._conversations:
            self._identity = identity
        self._conversations += conversations
        self._totals = totals
        return record

    def rest(self) -> Record | None:
        """The record of what is left, if anything is."""
        if not self._conversations:
            return None
        record = record_of(self._identity, self._source, self._conversations, self._num_codebooks, self._kind)
        self._conversations, self._totals = [], {}
        return record
