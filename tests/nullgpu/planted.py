"""Faults, one after the other, on two null GPUs: planted.py

Prints JSON: for each fault its exception, and the number of faults that the null GPU has reported.
"""

import ctypes
import gc
import json
from collections.abc import Callable

import torch
import triton
import triton.language as tl
from conformity import conforming
from torch import Tensor

from nullgpu.counters import counters, no_waiting

FIRST, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)


@triton.jit
def touch_kernel(target, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Writes something."""
    tl.store(target + tl.arange(0, SIZE), tl.program_id(1))


@torch.library.custom_op("planted::halved", mutates_args=())
def halved(values: Tensor) -> Tensor:
    """Another type than its fake promises."""
    return torch.empty_like(values, dtype=torch.float16)


@halved.register_fake
def _(values: Tensor) -> Tensor:
    return torch.empty_like(values)


def read_value() -> None:
    """Wait for a value in a forward pass."""
    with no_waiting():
        torch.zeros(1, device=FIRST).item()


def read_value_in_backward() -> None:
    """Wait for a value in a backward pass, which runs in a thread of its own."""
    weight = torch.zeros(3, device=FIRST, requires_grad=True)
    total = (weight * 2).sum()
    weight.register_hook(lambda gradient: gradient * gradient.sum().item())
    with no_waiting():
        total.backward()


def count_rows() -> None:
    """The shape of the result depends on values."""
    with no_waiting():
        torch.zeros(5, device=FIRST).nonzero()


def synchronize() -> None:
    """Wait without a value. PyTorch's own debug mode does not see this."""
    with no_waiting():
        torch.cuda.synchronize()


def wait_for_event() -> None:
    """Wait for an event."""
    event = torch.cuda.Event()
    event.record()
    with no_waiting():
        event.synchronize()


def copy_pageable() -> None:
    """A copy that claims not to block."""
    values = torch.zeros(100_000)
    with no_waiting():
        values.to(FIRST, non_blocking=True)


def launch_too_many_programs() -> None:
    """A grid of 65,536 in its second dimension."""
    touch_kernel[(1, 65_536)](torch.zeros(64, device=FIRST), SIZE=64)


def launch_too_much_shared_memory() -> None:
    """More than a kernel has asked for. What it has asked for, it gets."""
    driver = ctypes.CDLL("libcuda.so.1")
    sizes = [ctypes.c_uint(number) for number in (1, 1, 1, 32, 1, 1, 50_000)]
    modest, greedy = ctypes.create_string_buffer(b"modest"), ctypes.create_string_buffer(b"greedy")
    # Triton tries an attribute of newer drivers first (17).
    assert driver.cuFuncSetAttribute(modest, 17, 3) and not driver.cuFuncSetAttribute(modest, 8, 50_000), "attributes"
    assert not driver.cuLaunchKernel(modest, *sizes, None, None, None), "what was asked for"
    assert not driver.cuLaunchKernel(greedy, *sizes, None, None, None), "refused"


def give_triton_a_host_pointer() -> None:
    """A tensor of the CPU."""
    touch_kernel[(1,)](torch.zeros(64), SIZE=64)


def give_triton_another_device() -> None:
    """A tensor of a GPU that is not the current one."""
    touch_kernel[(1,)](torch.zeros(64, device=SECOND), SIZE=64)


def give_cublas_a_host_pointer() -> None:
    """Below PyTorch, which would not let it pass."""
    cublas, values = ctypes.CDLL("libcublas.so.13"), torch.zeros(4)
    pointer = ctypes.c_void_p(values.data_ptr())
    given = [pointer, None, pointer, 2, pointer, 2, None, pointer, 2]
    assert not cublas.cublasSgemm_v2(None, 0, 0, 2, 2, 2, *given), "refused"


def give_nccl_a_host_pointer() -> None:
    """Below PyTorch, which would not let it pass."""
    nccl, communicator, values = ctypes.CDLL("libnccl.so.2"), ctypes.c_void_p(), torch.zeros(4)
    nccl.ncclCommInitRank(ctypes.byref(communicator), 1, UniqueId(), 0)
    pointer = ctypes.c_void_p(values.data_ptr())
    refused = nccl.ncclAllReduce(pointer, pointer, ctypes.c_size_t(4), 7, 0, communicator, None)
    assert not refused, "refused"


class UniqueId(ctypes.Structure):
    """ncclUniqueId."""

    _fields_ = [("internal", ctypes.c_char * 128)]


def copy_from_freed_memory() -> None:
    """A pointer that was right once."""
    values = torch.zeros(2**20, device=FIRST)
    pointer = ctypes.c_void_p(values.data_ptr())
    del values
    gc.collect()
    torch.cuda.empty_cache()
    host, runtime = torch.zeros(4), ctypes.CDLL("libcudart.so.13")
    refused = runtime.cudaMemcpy(ctypes.c_void_p(host.data_ptr()), pointer, ctypes.c_size_t(16), 2)
    runtime.cudaGetLastError()  # else PyTorch takes the error for that of its next launch
    assert not refused, "refused"


def add_across_devices() -> None:
    """PyTorch finds this by itself, as the tensors know their devices."""
    torch.zeros(3, device=FIRST) + torch.zeros(3, device=SECOND)


def multiply_two_types() -> None:
    """PyTorch finds this by itself."""
    torch.zeros(2, 2, device=FIRST) @ torch.zeros(2, 2, device=FIRST, dtype=torch.bfloat16)


def break_a_promise() -> None:
    """The result of an operator is not what the compiler was promised."""
    with conforming("planted"):
        halved(torch.zeros(3, device=FIRST))


def fill_the_memory() -> None:
    """More than a GPU has."""
    torch.zeros(200 * 2**30, dtype=torch.int8, device=FIRST)


PLANTS: list[Callable[[], None]] = [
    read_value,
    read_value_in_backward,
    count_rows,
    synchronize,
    wait_for_event,
    copy_pageable,
    launch_too_many_programs,
    launch_too_much_shared_memory,
    give_triton_a_host_pointer,
    give_triton_another_device,
    give_cublas_a_host_pointer,
    give_nccl_a_host_pointer,
    copy_from_freed_memory,
    add_across_devices,
    multiply_two_types,
    break_a_promise,
    fill_the_memory,
]


def main() -> None:
    """Plant all of them."""
    torch.zeros(1, device=FIRST) + 1  # what is made at first use
    found: dict[str, tuple[str, int]] = {}
    for plant in PLANTS:
        before, text = counters().faults, ""
        try:
            plant()
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
        found[plant.__name__] = (text, counters().faults - before)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
