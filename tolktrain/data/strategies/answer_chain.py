"""Chain of modality: what was heard, the answer in text, the answer in speech."""

from collections.abc import Sequence

import numpy as np

from tolktrain.config.data import InterleavingConfig
from tolktrain.data.strategies.conversation import ConversationStrategy, Segment, spoken, switch, written
from tolktrain.data.turns import Conversation, Turn
from tolktrain.vocabulary import Vocabulary


class AnswerChain(ConversationStrategy):
    """The text of what was heard since the last answer, the answer in text, and the answer in speech.

    Each ends with EOS, and a switch follows. Where nothing was heard, as of a question in text, the answer in text is
    the first.
    """

    scores = ("text", "speech")

    def answer(
        self,
        conversation: Conversation,
        number: int,
        vocabulary: Vocabulary,
        interleaving: InterleavingConfig,
        rng: np.random.Generator,
    ) -> Sequence[Segment]:
        """Everything that is said in the turn."""
        segments: list[Segment] = []
        for turn in heard(conversation[:number]):
            segments += [written(turn, vocabulary, "everything"), switch(vocabulary)]
        turn = conversation[number]
        segments += [written(turn, vocabulary, "everything"), switch(vocabulary)]
        return [*segments, spoken(turn, vocabulary, "everything")]


def heard(before: Conversation) -> list[Turn]:
    """The turns in speech since the last answer, whose text an answer after these turns begins with."""
    begin = max((place + 1 for place, turn in enumerate(before) if turn.is_answer), default=0)
    return [turn for turn in before[begin:] if turn.has_speech]


STRATEGY = AnswerChain()
