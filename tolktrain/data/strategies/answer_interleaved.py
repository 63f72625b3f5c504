"""Answers in text and speech in turn, word by word."""

from collections.abc import Sequence

import numpy as np

from tolktrain.config.data import InterleavingConfig
from tolktrain.data.strategies.conversation import ConversationStrategy, Segment, interleaved, most_interleaved
from tolktrain.data.turns import Conversation
from tolktrain.vocabulary import Vocabulary


class AnswerInterleaved(ConversationStrategy):
    """Answers in text and speech in turn, word by word, in spans as those of `interleaved`."""

    scores = ("text", "speech")

    def answer(
        self,
        conversation: Conversation,
        number: int,
        vocabulary: Vocabulary,
        interleaving: InterleavingConfig,
        rng: np.random.Generator,
    ) -> Sequence[Segment]:
        """Spans with a switch between them."""
        return list(interleaved(conversation[number], vocabulary, interleaving, rng))

    def most_tokens(self, conversation: Conversation, vocabulary: Vocabulary) -> int:
        """As if each word had the modality in which it is longer, and were a span."""
        laid = self.lay_out(conversation, vocabulary, InterleavingConfig(), np.random.default_rng(0))
        turns = zip(conversation, laid, strict=False)
        return sum(
            1 + most_interleaved(turn, vocabulary) if turn.is_answer else tokens.num_tokens for turn, tokens in turns
        )


STRATEGY = AnswerInterleaved()
