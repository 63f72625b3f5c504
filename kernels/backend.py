"""Which kernels run: Triton's or plain PyTorch's."""

import importlib.util
import os


def choose_backend(requested: str, device_type: str) -> tuple[str, str]:
    """Resolve `auto` and check the rest.

    Args:
        requested: "auto", "triton" or "torch".
        device_type: where the states live, as `torch.device.type`.

    Returns:
        "triton" or "torch", and why, for the log.

    Raises:
        ValueError: another name; or Triton is demanded where it cannot run. It needs a GPU, or the environment variable
            TRITON_INTERPRET=1, with which it computes on the CPU, slowly.
    """
    if requested not in ("auto", "triton", "torch"):
        raise ValueError(f"kernels.backend {requested!r} is unknown; use auto, triton or torch")
    if requested == "torch":
        return "torch", "requested"
    obstacle = _obstacle(device_type)
    if requested == "triton":
        if obstacle:
            raise ValueError(f"kernels.backend triton cannot run: {obstacle}; use auto or torch")
        return "triton", "requested"
    if obstacle:
        return "torch", obstacle
    # The interpreter is for checking the kernels: nobody wants it by default.
    return ("triton", "a GPU and Triton are there") if device_type == "cuda" else ("torch", "there is no GPU")


def _obstacle(device_type: str) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device_type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return "there is no GPU"
    return None
