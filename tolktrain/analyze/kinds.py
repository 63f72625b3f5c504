"""Kinds of input tokens."""

import torch
from torch import Tensor

from tolktrain.vocabulary import SpecialIds

KINDS = ("text", "text EOS", "switch", "speech", "speech EOS")
PADDING = -1


def token_kinds(tokens: Tensor, speech_in: Tensor, lengths: Tensor, ids: SpecialIds, text_eos: int) -> Tensor:
    """The number of each position's kind in KINDS, PADDING after the sequence: int64 [B, T].

    Args:
        tokens: int64 [B, T], of the first codebook.
        speech_in: bool [B, T].
        lengths: int64 [B], input tokens of each sequence.
        ids: of the model.
        text_eos: the id that ends utterances of text.
    """
    number = KINDS.index
    text = torch.where(tokens == ids.switch, number("switch"), number("text"))
    text = torch.where(tokens == text_eos, number("text EOS"), text)
    speech = torch.where(tokens == ids.speech_eos, number("speech EOS"), number("speech"))
    kinds = torch.where(speech_in, speech, text)
    return kinds.masked_fill(torch.arange(tokens.shape[1])[None] >= lengths[:, None], PADDING)
