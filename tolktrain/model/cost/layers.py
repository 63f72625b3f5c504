"""The computation of each layer of the model."""

from tolktrain.model.architecture import Architecture
from tolktrain.model.cost.work import LayerCost, StepCounts
from tolktrain.model.parts import model_parts


def layer_costs(architecture: Architecture, counts: StepCounts) -> list[LayerCost]:
    """Cost of every layer for the given counts, in the order of `model_parts`."""
    return [part.cost(architecture, index, counts) for part, index in model_parts(architecture)]


def layer_flops(
    architecture: Architecture,
    sequence_length: int,
    speech_share: float = 0.5,
    pooled_share: float = 1.0,
    segment_length: int | None = None,
) -> list[LayerCost]:
    """Cost of every layer, for one position on average, in the order of `model_parts`.

    A product of [., m] and [m, n] takes 2 m n FLOPs a row (a multiplication and an addition per weight; Kaplan et al.,
    arXiv 2001.08361, section 2.1). Attention takes 4 H d for each pair of a query and a key it sees; causal, a position
    sees (T + 1) / 2 keys on average. With q = H d and g = G d the widths of queries and keys, a transformer layer is

        2 D (2 q + 2 g) + 6 D F        matrices: q and o, k and v; gate, up and down
        2 q (T + 1)                    attention, causal over T positions

    Its norms, rotations and activations are omitted; they are below 1 %. The rows of each part follow SmolTolk (arXiv
    2503.06211, section 3): the input adapter processes speech only, inside its segments; pooling and output adapter
    process all positions of the sequences that predict speech; each head the positions that predict its modality.

    Args:
        architecture: sizes and switches.
        sequence_length: positions of a sequence (T).
        speech_share: fraction of the positions whose token is speech; as many predict speech, the others text.
        pooled_share: fraction of the positions in sequences that predict speech; 1 in interleaved data.
        segment_length: positions of a speech segment; a whole sequence if not given, which is the maximum.
    """
    return layer_costs(architecture, StepCounts.average(sequence_length, speech_share, pooled_share, segment_length))
