"""Random generators continue where they were."""

import json
import random

import numpy as np
import torch

from tolktrain.checkpoint.random_states import capture_random_states, restore_random_states


def draw() -> list[object]:
    return [random.random(), random.gauss(0, 1), np.random.rand(3).tolist(), np.random.randn(), torch.randn(3).tolist()]


def test_states_survive_json() -> None:
    draw()
    states = json.loads(json.dumps(capture_random_states()))
    expected = [draw() for _ in range(3)]
    restore_random_states(states)
    assert [draw() for _ in range(3)] == expected
