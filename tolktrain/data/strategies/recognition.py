"""Speech, then its text."""

from tolktrain.data.strategies.prefix import PrefixStrategy


class Recognition(PrefixStrategy):
    """Speech, then its text."""

    scores = ("text",)


STRATEGY = Recognition(speech_first=True)
