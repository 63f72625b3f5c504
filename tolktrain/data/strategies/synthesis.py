"""Text, then its speech."""

from tolktrain.data.strategies.prefix import PrefixStrategy


class Synthesis(PrefixStrategy):
    """Text, then its speech."""

    scores = ("speech",)


STRATEGY = Synthesis(speech_first=False)
