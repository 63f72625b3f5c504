"""Configuration of `tolktrain evaluate --suite`: the benchmarks, and how they are scored."""

from typing import Annotated

from pydantic import Field

from tolktrain.config.base import GivenPath, InputPath, StrictModel


class BenchmarkConfig(StrictModel):
    """One benchmark."""

    name: str = Field(description="Name of the benchmark, such as sblimp or voxeval; docs/evaluation.md lists them.")
    folder: Annotated[str, InputPath()] = Field(description="Local folder, as distributed.")
    label: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$",
        description="Name in the results; the benchmark's if not set. Needed if a benchmark is named twice.",
    )
    rules: tuple[str, ...] = Field(
        default=(), strict=False, description="Rules of scores, such as whole_mean; the benchmark's own if empty."
    )

    @property
    def shown(self) -> str:
        """The name in the results."""
        return self.label or self.name


class SuiteConfig(StrictModel):
    """The benchmarks of a suite."""

    benchmarks: tuple[BenchmarkConfig, ...] = Field(strict=False, min_length=1, description="Benchmarks, in order.")
    allow_incomplete: bool = Field(
        default=False, description="Whether to score what is there if items are missing, doubled or unreadable."
    )
    batch_tokens: int | None = Field(
        default=None, gt=0, description="Positions scored at a time; the run's micro batch if not set."
    )
    unit_cache: Annotated[str | None, GivenPath()] = Field(
        default=None, description="Folder for the units of recordings; tolktrain/units in ~/.cache if not set."
    )
