"""Models of how long a device takes for an operation of known bytes and FLOPs, with their constants.

`tolktrain bench --count` applies them to counted operations, `tolktrain plan` to computed ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tolktrain.cluster.accelerators import Accelerator

PRODUCT, VOCABULARY_PRODUCT, ATTENTION, ATTENTION_BACKWARD, MEMORY = (
    "product",
    "vocabulary product",  # with a table of the vocabulary: wide, so its tiles fit better
    "attention",
    "attention backward",
    "memory",  # everything else: bound by what it moves
)
# Rates that measurements replace, and the kind of operations whose fraction of the peak each is.
_KINDS = {
    "products": PRODUCT,
    "vocabulary_products": VOCABULARY_PRODUCT,
    "attention": ATTENTION,
    "attention_backward": ATTENTION_BACKWARD,
}
RATES = (*_KINDS, "copy", "launch_seconds")


@dataclass(frozen=True)
class Work:
    """What an operation does."""

    kind: str  # one of the constants above
    bytes: float  # read and written, each tensor once, nothing taken from a cache
    flops: float = 0.0
    width: float = 0.0  # narrowest side of a product
    launches: float = 1.0  # of kernels, and copies and fills by the driver


@dataclass(frozen=True)
class DeviceModel:
    """A model of a device. Fractions are of the figures of an `Accelerator`."""

    name: str
    what: str
    widths: tuple[float, ...]  # narrowest sides of products, for the next two
    products: tuple[float, ...]  # fraction of the peak
    vocabulary_products: tuple[float, ...]
    attention: float  # of the peak, causal pairs alone
    attention_backward: float
    copy: float  # of the memory's bandwidth
    launch_seconds: float  # added for each launch
    floor_seconds: float  # least time of a launch
    sustained: tuple[str, ...] = ()  # kinds of which a device reaches `Accelerator.sustained` of the fractions

    def seconds(self, work: Work, device: Accelerator) -> float:
        """Of an operation on a device."""
        moving = work.bytes / (self.copy * device.memory_bandwidth)
        computing = 0.0
        if work.kind != MEMORY:
            scale = device.sustained if work.kind in self.sustained else 1.0
            computing = work.flops / (scale * self._fraction(work) * device.peak_flops)
        return max(max(moving, computing) + self.launch_seconds * work.launches, self.floor_seconds * work.launches)

    def measured(self, values: Mapping[str, float | tuple[float, ...]]) -> "DeviceModel":
        """This model with measured rates in place of its own, as `tolktrain plan --calibration` reads them.

        Args:
            values: by their names in `RATES`; products are fractions at `WIDTHS`. Rates that are not there stay.
        """
        if not values:
            return self
        found = dict(values)
        if "products" in found:
            found = {"vocabulary_products": found["products"], **found}
        assert set(found) <= set(RATES), found
        kinds = {_KINDS[name] for name in found if name in _KINDS}
        return replace(
            self,
            name=f"{self.name}, measured rates",
            sustained=tuple(kind for kind in self.sustained if kind not in kinds),
            **found,  # type: ignore[arg-type]
        )

    def _fraction(self, work: Work) -> float:
        if work.kind in (ATTENTION, ATTENTION_BACKWARD):
            return self.attention if work.kind == ATTENTION else self.attention_backward
        return _interpolated(
            self.widths, self.vocabulary_products if work.kind == VOCABULARY_PRODUCT else self.products, work.width
        )


WIDTHS = (256.0, 576.0, 960.0, 2048.0, 4096.0, 8192.0)  # of the fractions of products, measured ones too

# A copy on an H200 was measured at about 4.3 TB/s, 89 % of the data sheet's bandwidth; the same is assumed for others.
_COPY = 0.892

BOUND = DeviceModel(
    "bound",
    "a bound that kernels of these widths hardly reach",
    widths=(256.0,),
    products=(0.70,),
    vocabulary_products=(0.70,),
    attention=0.70,
    attention_backward=0.70,
    copy=_COPY,
    launch_seconds=0.0,
    floor_seconds=3e-6,
)

LIKELY = DeviceModel(
    "likely",
    "what kernels of these shapes are expected to reach",
    # Assumed from the tiles that fit these widths and the length of the sums.
    widths=WIDTHS,
    products=(0.32, 0.50, 0.58, 0.68, 0.73, 0.76),
    vocabulary_products=(0.40, 0.58, 0.66, 0.68, 0.73, 0.76),
    # 330 of 989.4 TFLOP/s forward: cuDNN on an H100, heads of 64, causal, 2048 positions (FlashAttention-3, arXiv
    # 2407.08608); backward is assumed.
    attention=0.3335,
    attention_backward=0.2628,
    copy=0.92 * _COPY,
    launch_seconds=1e-6,
    floor_seconds=0.0,
)

SUSTAINED = replace(
    LIKELY,
    name="sustained",
    what="those of single kernels, slowed down to what published trainings reach on many such GPUs",
    # Fitted together with `Accelerator.sustained` to llm-foundry's table, whose models move more than fused kernels.
    copy=0.65,
    sustained=tuple(_KINDS.values()),
)

# Its rates only matter in relation to each other: a calibration of the machine scales them.
PROCESSOR = DeviceModel(
    "processor",
    "a rank on processor cores in float32",
    widths=WIDTHS,
    products=(1.0,) * len(WIDTHS),
    vocabulary_products=(1.0,) * len(WIDTHS),
    attention=1.0,
    attention_backward=1.0,
    copy=0.92,
    launch_seconds=1e-6,
    floor_seconds=0.0,
)


def _interpolated(places: Sequence[float], values: Sequence[float], place: float) -> float:
    """Piecewise linear; proportional below the first place, constant above the last."""
    if len(places) == 1:
        return values[0]
    if place <= places[0]:
        return values[0] * max(place, 1.0) / places[0]
    for (left, low), (right, high) in zip(
        zip(places, values, strict=True), zip(places[1:], values[1:], strict=True), strict=False
    ):
        if place <= right:
            return low + (place - left) / (right - left) * (high - low)
    return values[-1]
