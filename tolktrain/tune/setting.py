"""A setting: everything that changes the speed of a step and nothing of what it computes."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Setting:
    """A layout of ranks, and how a step is divided, stored and sent."""

    tensor: int  # ranks that split each layer
    pipeline: int  # stages that hold the layers
    zero_stage: int
    micro_batch_size: int
    recompute: bool = False  # the layers in the backward pass
    compile: bool = False  # the layers
    document: str = "{}"  # DeepSpeed's file, as canonical JSON
    label: str = field(default="", compare=False)  # where it comes from, if it is not of the search
    varied: tuple[str, ...] = field(default=(), compare=False)  # entries of zero_optimization that the search changed

    @classmethod
    def of_entries(cls, entries: Mapping[str, Any], **values: Any) -> "Setting":
        """A setting with these entries of DeepSpeed's file."""
        return cls(document=canonical(entries), **values)

    @property
    def entries(self) -> dict[str, Any]:
        """Entries of DeepSpeed's file."""
        found: dict[str, Any] = json.loads(self.document)
        return found

    @property
    def zero(self) -> dict[str, Any]:
        """The section zero_optimization."""
        found: dict[str, Any] = self.entries.get("zero_optimization", {})
        return found

    @property
    def offload(self) -> bool:
        """Whether master weights and moments are on the host."""
        device = (self.zero.get("offload_optimizer") or {}).get("device", "none")
        return bool(device != "none")

    @property
    def name(self) -> str:
        """Short and unique among the settings of a search: "t 2, p 1, ZeRO 1, micro batch 8, recomputed"."""
        parts = [f"t {self.tensor}, p {self.pipeline}, ZeRO {self.zero_stage}, micro batch {self.micro_batch_size}"]
        parts += [word for word, is_on in (("recomputed", self.recompute), ("compiled", self.compile)) if is_on]
        parts += ["offload"] if self.offload else []
        parts += [f"{entry} {json.dumps(self.zero[entry])}" for entry in self.varied]
        return ", ".join(parts)

    def with_zero(self, **entries: Any) -> "Setting":
        """Another one with these entries of zero_optimization."""
        document = self.entries
        document["zero_optimization"] = {**document.get("zero_optimization", {}), **entries}
        varied = tuple(dict.fromkeys([*self.varied, *entries]))
        return replace(self, document=canonical(document), label="", varied=varied)

    def but(self, **values: Any) -> "Setting":
        """Another one with these values."""
        return replace(self, **values, label="")

    @property
    def overrides(self) -> dict[str, str]:
        """Entries of the configuration, by dotted key, except the name of DeepSpeed's file."""
        return {
            "parallel.tensor_parallel_size": str(self.tensor),
            "parallel.pipeline_parallel_size": str(self.pipeline),
            "parallel.sequence_parallel": str(self.tensor > 1).lower(),
            "deepspeed.zero_stage": str(self.zero_stage),
            "train.micro_batch_size": str(self.micro_batch_size),
            "train.activation_checkpointing": "layers" if self.recompute else "none",
            "train.compile": "layers" if self.compile else "none",
        }

    def layout_knobs(self) -> dict[str, Any]:
        """Each knob that every setting has, with its value."""
        return {
            "tensor ranks": self.tensor,
            "pipeline stages": self.pipeline,
            "ZeRO stage": self.zero_stage,
            "offload": self.offload,
            "micro batch": self.micro_batch_size,
            "recomputation": self.recompute,
            "compile": self.compile,
        }

    def knobs(self) -> dict[str, Any]:
        """Each knob with its value, the entries of DeepSpeed included, for comparisons."""
        return {
            **self.layout_knobs(),
            **{
                f"zero_optimization.{name}": value
                for name, value in self.zero.items()
                if name not in ("stage", "offload_optimizer")
            },
        }


def canonical(entries: Mapping[str, Any]) -> str:
    """JSON that equal entries give alike."""
    return json.dumps(entries, sort_keys=True, separators=(",", ":"))


def digest(content: Any) -> str:
    """A short name of plain values."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Outcome:
    """The result of a trial."""

    status: str  # "ok", "out of memory", "time-out" or "failed"
    tokens_per_step: int = 0
    seconds: tuple[float, ...] = ()  # of each timed step
    first_loss: float | None = None
    peak_memory_gib: float | None = None  # of the fullest rank
    peak_reserved_gib: float | None = None
    start_memory_gib: float | None = None
    message: str = ""  # why there is no time
    trial_seconds: float = 0.0  # from start to end
    date: str = ""

    @property
    def is_ok(self) -> bool:
        """Whether it was timed."""
        return self.status == "ok"
