"""Where a torch task trains."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from fedbus import TorchTask
from fedbus.tasks.torch_task import choose_device


def _torch(cuda, mps):
    """As much of a torch module as says what there is; `mps=None` is a torch from before 1.12."""
    backends = SimpleNamespace() if mps is None else SimpleNamespace(mps=_offers(mps))
    return SimpleNamespace(cuda=_offers(cuda), backends=backends)


def _offers(there):
    return SimpleNamespace(is_available=lambda: there)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [
        (True, True, "cuda"),
        (True, False, "cuda"),
        (True, None, "cuda"),
        (False, True, "mps"),
        (False, False, "cpu"),
        (False, None, "cpu"),
    ],
)
def test_the_first_of_cuda_mps_and_cpu_is_chosen(cuda, mps, expected):
    assert choose_device(_torch(cuda, mps)) == expected


def test_the_torch_installed_here_answers():
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    assert choose_device(torch) == next(name for name, there in available.items() if there)


def test_the_network_is_put_there_and_a_task_may_choose_for_itself():
    class Elsewhere(TorchTask):
        def network(self):
            return torch.nn.Linear(2, 1)

        def device(self):
            return "meta"  # a device that every torch has

    model = Elsewhere().model(seed=0)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
