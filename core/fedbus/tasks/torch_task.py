"""Training tasks in torch: the user writes the network and the data, this fills in the rest.

torch is imported when a model is made, never when this module is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Dict, Iterable, Iterator, Mapping

import numpy as np

from fedbus.tasks.load import needs
from fedbus.tasks.task import Arrays, Evaluated, Site, Step, Trained, TrainingTask

if TYPE_CHECKING:
    import torch
    from torch import nn

EVAL_BATCH = 256


class TorchTask(TrainingTask):
    """A task whose model is a `torch.nn.Module`.

    A subclass defines `network` and `load`, and where the defaults do not fit, `loss`,
    `optimizer`, `device` or `groups`.
    """

    @dataclass(frozen=True)
    class Params:
        """How one round trains on one worker.

        Attributes:
            epochs: passes over the worker's data.
            batch_size: examples per step, at most.
            lr: learning rate.
            momentum: of SGD.
            weight_decay: L2 penalty.
        """

        epochs: int = 1
        batch_size: int = 32
        lr: float = 0.05
        momentum: float = 0.0
        weight_decay: float = 0.0

        def __post_init__(self) -> None:
            if self.epochs < 1:
                raise ValueError("epochs: must be at least 1, got {}".format(self.epochs))
            if self.batch_size < 1:
                raise ValueError("batch_size: must be at least 1, got {}".format(self.batch_size))
            if not 0 < self.lr < math.inf:
                raise ValueError("lr: must be above 0, got {}".format(self.lr))
            if not 0 <= self.momentum < 1:
                raise ValueError("momentum: must be from 0 to below 1, got {}".format(self.momentum))
            if not 0 <= self.weight_decay < math.inf:
                raise ValueError("weight_decay: must be at least 0, got {}".format(self.weight_decay))

    def network(self) -> nn.Module:
        """Make the network; torch is seeded already."""
        raise NotImplementedError(type(self).__name__ + " must define network()")

    def load(self, site: Site) -> Any:
        """Read the data: `(x, y)` as tensors or arrays, or a torch Dataset of such pairs.

        x is float32; y is whole numbers for classes (cross-entropy), float32 for quantities (squared error).
        """
        raise NotImplementedError(type(self).__name__ + " must define load(site)")

    def loss(self, output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Mean loss of a batch: cross-entropy for whole-number targets, else squared error."""
        functional = _torch(self).nn.functional
        if y.is_floating_point():
            if output.numel() != y.numel():
                raise ValueError(
                    "the targets are {} of shape {}, which means squared error, but the network gives {}; "
                    "for classes, load() gives whole numbers: y.astype(np.int64)".format(
                        str(y.dtype).replace("torch.", ""), list(y.shape), list(output.shape)
                    )
                )
            squared: torch.Tensor = functional.mse_loss(output.reshape(y.shape), y)
            return squared
        entropy: torch.Tensor = functional.cross_entropy(output, y.long())
        return entropy

    def optimizer(self, parameters: Iterable[nn.Parameter], params: Any) -> torch.optim.Optimizer:
        """Make a round's optimizer: SGD, from the fields of `TorchTask.Params`."""
        sgd: torch.optim.Optimizer = _torch(self).optim.SGD(
            parameters, lr=params.lr, momentum=params.momentum, weight_decay=params.weight_decay
        )
        return sgd

    def device(self) -> str:
        """Where to train: the first of cuda, mps and cpu that there is; override it to say otherwise."""
        return choose_device(_torch(self))

    def groups(self) -> Dict[str, str]:
        """BatchNorm statistics travel exactly: their changes dwarf those of the weights."""
        return {"*running_mean": "exact", "*running_var": "exact", "*num_batches_tracked": "exact"}

    def model(self, seed: int) -> nn.Module:
        """Make the network with weights drawn from `seed` on the CPU, so alike on all devices."""
        _torch(self).manual_seed(seed)
        return self.network().to(self.device())

    def arrays(self, model: nn.Module) -> Arrays:
        """The state dict's tensors; on the CPU they share the model's memory. bfloat16 comes as float32."""
        torch = _torch(self)
        found: Arrays = {}
        for name, tensor in model.state_dict().items():
            if isinstance(tensor, torch.Tensor):
                tensor = tensor.detach().cpu()
                found[name] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        return found

    def set_arrays(self, model: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
        """Copy tensors into the model.

        Raises:
            ValueError: the model has no such tensor.
        """
        torch = _torch(self)
        state = model.state_dict()
        with torch.no_grad():
            for name, array in arrays.items():
                if name not in state:
                    raise ValueError("tensor {!r} is not in the model".format(name))
                state[name].copy_(torch.from_numpy(array))

    def train(self, model: nn.Module, data: Any, step: Step) -> Trained:
        """Train for `params.epochs`; loss and accuracy are those of the last epoch, while training.

        Raises:
            ValueError: no data, or the loss is no longer finite.
        """
        torch = _torch(self)
        torch.manual_seed(step.seed)  # dropout and the like
        chance = np.random.RandomState([step.seed & 0xFFFFFFFF, step.seed >> 32])
        examples = _Examples(torch, data, model)
        optimizer = self.optimizer(model.parameters(), step.params)
        batches = math.ceil(len(examples) / step.params.batch_size)
        model.train()
        for epoch in range(step.params.epochs):
            score = _Score(torch)
            order = chance.permutation(len(examples))
            # Batches of nearly equal size: BatchNorm cannot train on a last batch of one.
            for i, chosen in enumerate(np.array_split(order, batches)):
                x, y = examples.batch(chosen)
                optimizer.zero_grad()
                output = model(x)
                loss = self.loss(output, y)
                loss.backward()  # type: ignore[no-untyped-call]  # torch does not type it
                optimizer.step()
                score.add(len(chosen), loss.detach(), output.detach(), y)
                step.progress((epoch + (i + 1) / batches) / step.params.epochs)
            metrics = score.metrics()
            if not math.isfinite(metrics["loss"]):
                raise ValueError(
                    "the loss is {} in epoch {}; a lower lr may help".format(metrics["loss"], epoch + 1)
                )
        return Trained(len(examples), metrics)

    def evaluate(self, model: nn.Module, data: Any) -> Evaluated:
        """Mean loss, and accuracy where the targets are classes.

        Raises:
            ValueError: no data.
        """
        torch = _torch(self)
        examples = _Examples(torch, data, model)
        score = _Score(torch)
        model.eval()
        with torch.no_grad():
            for start in range(0, len(examples), EVAL_BATCH):
                chosen = np.arange(start, min(start + EVAL_BATCH, len(examples)))
                x, y = examples.batch(chosen)
                output = model(x)
                score.add(len(chosen), self.loss(output, y), output, y)
        return Evaluated(len(examples), score.metrics())


def choose_device(torch: Any) -> str:
    """The first of cuda, mps and cpu that a torch module offers.

    A torch from before 1.12, as old boards have it, knows no mps. `CUDA_VISIBLE_DEVICES=` (empty)
    in the worker's environment hides the GPU.
    """
    if torch.cuda.is_available():
        return "cuda"
    mps = getattr(torch.backends, "mps", None)
    return "mps" if mps is not None and mps.is_available() else "cpu"


class _Examples:
    """Batches by index from a pair of arrays, or from a Dataset, on the model's device."""

    def __init__(self, torch: Any, data: Any, model: nn.Module) -> None:
        self._torch = torch
        weights = next(model.parameters(), None)
        self._device = None if weights is None else weights.device
        if data is None:
            raise ValueError("load() returned nothing: return (x, y), or a torch Dataset of such pairs")
        self._pair = isinstance(data, (tuple, list)) and len(data) == 2
        self._data = tuple(torch.as_tensor(part) for part in data) if self._pair else data
        lengths = {len(part) for part in self._data} if self._pair else {len(data)}
        if len(lengths) != 1:
            raise ValueError(
                "load() gave {} examples but {} targets".format(*(len(part) for part in self._data))
            )
        self._length = lengths.pop()
        for name, part in (("x", self._data[0]), ("y", self._data[1])) if self._pair else ():
            if part.dtype == torch.float64 and weights is not None and weights.dtype == torch.float32:
                raise ValueError(
                    "load() gave {0} as float64, but the network computes in float32: "
                    "{0}.astype(np.float32)".format(name)
                )
        if self._length == 0:
            raise ValueError("load() gave no data")

    def __len__(self) -> int:
        return int(self._length)

    def batch(self, chosen: Any) -> Iterator[Any]:
        """The inputs and targets of the chosen examples."""
        if self._pair:
            index = self._torch.from_numpy(chosen)
            return (part[index].to(self._device) for part in self._data)
        from torch.utils.data import default_collate

        return iter(_move(default_collate([self._data[int(i)] for i in chosen]), self._device))


class _Score:
    """Running means, kept on the device so that no step waits for it."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._count = 0
        self._loss: Any = 0.0
        self._right: Any = None

    def add(self, count: int, loss: Any, output: Any, y: Any) -> None:
        """Count a batch: its size, mean loss, outputs and targets."""
        self._count += count
        self._loss = self._loss + loss * count
        is_class = self._torch.is_tensor(y) and not y.is_floating_point()
        if is_class and self._torch.is_tensor(output) and output.ndim == y.ndim + 1:
            right = (output.argmax(1) == y).float().mean() * count
            self._right = right if self._right is None else self._right + right

    def metrics(self) -> Dict[str, float]:
        """The mean loss, and the accuracy of a classifier."""
        found = {"loss": float(self._loss) / self._count}
        if self._right is not None:
            found["accuracy"] = float(self._right) / self._count
        return found


def _move(value: Any, device: Any) -> Any:
    if isinstance(value, dict):
        return {key: _move(part, device) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_move(part, device) for part in value]
    return value.to(device) if hasattr(value, "to") else value


def _torch(task: TrainingTask) -> Any:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ImportError(needs(task.name or type(task).__name__, error.name or "torch")) from error
    return torch
