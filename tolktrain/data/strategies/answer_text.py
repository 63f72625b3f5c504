"""Answers in text."""

from collections.abc import Sequence

import numpy as np

from tolktrain.config.data import InterleavingConfig
from tolktrain.data.strategies.conversation import ConversationStrategy, Segment, written
from tolktrain.data.turns import Conversation
from tolktrain.vocabulary import Vocabulary


class AnswerText(ConversationStrategy):
    """Answers in text."""

    scores = ("text",)

    def answer(
        self,
        conversation: Conversation,
        number: int,
        vocabulary: Vocabulary,
        interleaving: InterleavingConfig,
        rng: np.random.Generator,
    ) -> Sequence[Segment]:
        """The text."""
        return [written(conversation[number], vocabulary, "everything")]


STRATEGY = AnswerText()
