"""The null GPU finds faults that are planted."""

from null_jobs import NullJobs

WAITS = ("read_value", "read_value_in_backward", "count_rows", "synchronize", "wait_for_event")
# Fault, a part of its exception, and whether the null GPU reports it: the rest PyTorch or Triton find, as on a GPU.
EXPECTED = {
    **{name: ("the host waits for the device", True) for name in WAITS},
    "copy_pageable": ("host memory is not pinned", True),
    "launch_too_many_programs": ("invalid launch of touch_kernel: grid 1 65536 1", True),
    "launch_too_much_shared_memory": ("refused", True),
    "give_triton_a_host_pointer": ("cannot be accessed from Triton", False),
    "give_triton_another_device": ("", True),
    "give_cublas_a_host_pointer": ("refused", True),
    "give_nccl_a_host_pointer": ("refused", True),
    "copy_from_freed_memory": ("refused", True),
    "add_across_devices": ("Expected all tensors to be on the same device", False),
    "multiply_two_types": ("to have the same dtype", False),
    "break_a_promise": ("planted.halved.default returns", False),
    "fill_the_memory": ("OutOfMemoryError", False),
}


def test_planted_faults_are_found(null_jobs: NullJobs) -> None:
    """Each of them: by an exception where it happens."""
    outcome = null_jobs.run("planted.py", environ={"NULLGPU_COUNT": "2"})
    assert outcome.codes == [0], outcome
    found = outcome.last_lines[0]
    assert found.keys() == EXPECTED.keys()
    for name, (part, is_reported) in EXPECTED.items():
        text, num_faults = found[name]
        assert text and part in text, (name, text)
        assert (num_faults > 0) == is_reported, (name, text, num_faults)
    assert len(outcome.faults) == sum(num_faults for _, num_faults in found.values())
