"""The picture of a plan: for each number of GPUs the time of the best layouts by part, and their memory."""

from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tolktrain.plan.run import Plans

_TIME = {
    "products": "#2b6cd4",
    "attention": "#5f95e6",
    "elementwise": "#9dbcec",
    "launches": "#b9bdc4",
    "recompute": "#7a5fc0",
    "optimizer": "#188a6c",
    "tensor_traffic": "#d2571f",
    "pipeline_traffic": "#e88a4f",
    "bubble": "#f3c3a1",
    "data_traffic": "#b3261e",
}
_MEMORY = {
    "states": "#188a6c",
    "activations": "#2b6cd4",
    "logits": "#5f95e6",
    "carriers": "#e88a4f",
    "buffers": "#d2571f",
    "reserve": "#c9ccd2",
    "overhead": "#9a9ea6",
}
_STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}


def draw(plans: Plans, path: Path) -> None:
    """Write a PNG or SVG, by the file's suffix."""
    rows = [(plan, job) for plan in plans.plans for job in plan.ranked[: plans.options.top]]
    names = [f"{plan.cluster.num_gpus} GPUs: {job.candidate.name}" for plan, job in rows]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(12, 1.6 + 0.34 * max(len(rows), 3)), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, sharey=True)
        for part, colour in _TIME.items():
            values = [getattr(job.longest.step, part) / job.longest.step.seconds for _, job in rows]
            before = [
                sum(getattr(job.longest.step, other) for other in _before(_TIME, part)) / job.longest.step.seconds
                for _, job in rows
            ]
            if any(value > 0.002 for value in values):
                left.barh(names, values, left=before, color=colour, label=part.replace("_", " "))
        for part, colour in _MEMORY.items():
            parts = [job.memory.parts() for _, job in rows]
            before = [sum(found[other] for other in _before(_MEMORY, part)) for found in parts]
            right.barh(names, [found[part] for found in parts], left=before, color=colour, label=part)
        for number, (_, job) in enumerate(rows):
            left.text(1.01, number, f"{1e3 * job.longest.step.seconds:,.0f} ms", va="center", fontsize=8)
        right.axvline(plans.device.memory_gib, color="#1b1c1e", linewidth=1, linestyle="--")
        left.set(title="share of a step", xlim=(0, 1.12), xticks=[0, 0.25, 0.5, 0.75, 1])
        right.set(title=f"memory of a GPU, GiB (dashed: {plans.device.name})")
        left.invert_yaxis()
        for axis in (left, right):
            axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=4, fontsize=8)
        figure.savefig(path, dpi=130)


def _before(parts: dict[str, str], part: str) -> list[str]:
    names = list(parts)
    return names[: names.index(part)]
