"""The model as a list of parts, each of which builds a layer and computes its cost."""

from tolktrain.model.architecture import Architecture
from tolktrain.model.embedding import Embedding
from tolktrain.model.heads import Heads
from tolktrain.model.layers import BackboneLayer, FinalNorm, InputAdapterLayer, OutputAdapterLayer
from tolktrain.model.parameter_layout import PipelineLayer
from tolktrain.model.pooling import LayerPooling


def model_parts(architecture: Architecture) -> list[tuple[type[PipelineLayer], int | None]]:
    """Class of each layer and its index among its kind (None where there is only one), from the embedding to the heads.

    The first layer takes `ModelInputs`, the last returns `LossSums`; a `Carrier` passes from each layer to the next.
    """
    return [
        (Embedding, None),
        *((InputAdapterLayer, index) for index in range(architecture.input_adapter_layers)),
        *((BackboneLayer, index) for index in range(architecture.num_layers)),
        (FinalNorm, None),
        (LayerPooling, None),
        *((OutputAdapterLayer, index) for index in range(architecture.output_adapter_layers)),
        (Heads, None),
    ]
