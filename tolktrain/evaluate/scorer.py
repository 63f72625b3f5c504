"""A model for evaluation: batches in, numpy out, on a GPU if there is one."""

from typing import Any

import numpy as np
import torch

from tolktrain.data.batch import Batch
from tolktrain.evaluate.ngram import FloatArray
from tolktrain.model.inputs import ModelInputs
from tolktrain.model.parameter_layout import canonical_state, parameter_views
from tolktrain.model.smoltolk import SmolTolk


class Scorer:
    """Wraps a model for scoring, and moves it to a device."""

    def __init__(self, model: SmolTolk, device: str | None = None) -> None:
        """`device`: cpu or cuda; a GPU if there is one, if None."""
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.to(self.device).eval()

    @property
    def device_name(self) -> str:
        """The device in words."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        threads = torch.get_num_threads()
        return f"{threads} CPU thread{'s' if threads > 1 else ''}"

    def token_nll(self, batch: Batch) -> FloatArray:
        """Negative log-likelihood of each scored target in nats, float64 [B, T]; 0 elsewhere."""
        nll = self.model.token_nll(ModelInputs.from_batch(batch).to(self.device))
        return nll.double().cpu().numpy()

    def parameters(self) -> dict[str, int]:
        """Number of parameters of each group, and in total."""
        counts = {"backbone": 0, "pooling": 0, "speech": 0} | ({"lora": 0} if self.model.architecture.lora else {})
        for view in parameter_views(self.model).values():
            counts[view.group] += sum(int(np.prod(shape)) for shape in view.shapes)
        return counts | {"total": sum(counts.values())}

    def static_weights(self) -> list[float] | None:
        """Softmax of the static pooling weights over the backbone's layers, None without them."""
        weights = canonical_state(self.model).get("pooling.layer_weights")
        return None if weights is None else torch.softmax(weights.double(), dim=0).tolist()

    def selector_means(self, batches: list[Batch]) -> dict[str, list[float] | None]:
        """Mean weights of the selector at text and at speech positions (by the input token; padding left out)."""
        sums = {"text": torch.zeros(0), "speech": torch.zeros(0)}
        counts = {"text": 0, "speech": 0}
        for batch in batches:
            probs = self.model.layer_probs(ModelInputs.from_batch(batch, every_sequence=True).to(self.device))
            if probs is None:
                return {"text": None, "speech": None}
            # A position whose target is scored is none of padding, and neither is any position of speech.
            masks = {"text": batch.text_pred & ~batch.speech_in, "speech": batch.speech_in}
            for modality, mask in masks.items():
                chosen = probs.cpu()[mask].double()
                total = chosen.sum(dim=0)
                sums[modality] = sums[modality] + total if sums[modality].numel() else total
                counts[modality] += len(chosen)
        return {m: (sums[m] / counts[m]).tolist() if counts[m] else None for m in ("text", "speech")}

    def layers(self, batches: list[Batch]) -> dict[str, Any] | None:
        """Pooling weights: `static`, and the selector's means for `text` and `speech`; None without pooling."""
        static = self.static_weights()
        layers = {"static": static, **self.selector_means(batches)}
        return layers if any(values is not None for values in layers.values()) else None
