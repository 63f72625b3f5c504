"""Configuration of the health check before the first step."""

from pydantic import Field

from tolktrain.config.base import Free, StrictModel


class HealthConfig(StrictModel):
    """The limits of the health check."""

    enabled: Free[bool] = Field(
        default=True,
        description="Whether the machines are checked before training; --skip-health-check sets it to false once.",
    )
    slow_fraction: Free[float] = Field(
        default=0.7,
        ge=0,
        lt=1,
        description="Speed of a GPU, as a fraction of the median of its kind, below which training does not start. For"
        " CPUs, whose cores are shared, half of it, and only a warning. 0 switches this off.",
    )
    slow_network_fraction: Free[float] = Field(
        default=0.5,
        ge=0,
        lt=1,
        description="Bandwidth of a node to others, as a fraction of the nodes' median, below which training on GPUs"
        " does not start; on CPUs there is only a warning. 0 switches this off.",
    )
    clock_difference_seconds: Free[float] = Field(
        default=1.0, gt=0, description="Difference between the nodes' clocks above which there is a warning."
    )
