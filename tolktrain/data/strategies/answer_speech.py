"""Answers in speech."""

from collections.abc import Sequence

import numpy as np

from tolktrain.config.data import InterleavingConfig
from tolktrain.data.strategies.conversation import ConversationStrategy, Segment, spoken
from tolktrain.data.turns import Conversation
from tolktrain.vocabulary import Vocabulary


class AnswerSpeech(ConversationStrategy):
    """Answers in speech."""

    scores = ("speech",)

    def answer(
        self,
        conversation: Conversation,
        number: int,
        vocabulary: Vocabulary,
        interleaving: InterleavingConfig,
        rng: np.random.Generator,
    ) -> Sequence[Segment]:
        """The units."""
        return [spoken(conversation[number], vocabulary, "everything")]


STRATEGY = AnswerSpeech()
