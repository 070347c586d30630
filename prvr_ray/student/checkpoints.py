"""A student, or a whole training state, as the bytes of one safetensors object: put and read whole, never unpickled.

Owns the format. Where the bytes go is the caller's.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from prvr_ray.student.model import Student
from prvr_ray.student.optimizer import BertAdam


@dataclass
class Progress:
    """How far a training is.

    epoch: the epoch under way, from 0. step: steps done in it. num_updates: steps done in all.
    sums: loss parts, summed over this epoch's steps. best_sumr, best_epoch: of the fused validation SumR; of equal
    epochs the latest, whose weights are kept. improved_epoch: the first of them, from which patience counts; None in
    the states of earlier versions, which kept the first.
    """

    epoch: int = 0
    step: int = 0
    num_updates: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    best_sumr: float = -1.0
    best_epoch: int = -1
    improved_epoch: int | None = None

    @property
    def epochs_without_gain(self) -> int:
        """Ended epochs since the fused validation SumR last rose."""
        improved = self.best_epoch if self.improved_epoch is None else self.improved_epoch
        return self.epoch - improved - 1

    def add(self, parts: dict[str, float]) -> None:
        """Count one step."""
        self.step += 1
        self.num_updates += 1
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def end_epoch(self, sumr: float) -> bool:
        """Begin the next epoch; whether the weights of the one that ends are to be kept.

        Ties keep the later weights: on a small split an untrained student may reach what a trained one does, and the
        first step has learning rate 0. They are no gain, or patience would never end such a run.
        """
        is_best = sumr >= self.best_sumr
        if sumr > self.best_sumr:
            self.improved_epoch = self.epoch
        elif self.improved_epoch is None:
            self.improved_epoch = self.best_epoch
        if is_best:
            self.best_sumr, self.best_epoch = sumr, self.epoch
        self.epoch, self.step, self.sums = self.epoch + 1, 0, {}
        return is_best


@dataclass
class TrainingState:
    """All that a resumed run needs. The random numbers of a step follow from (seed, epoch, step, worker), so there is
    no generator to keep."""

    model: Student
    optimizer: BertAdam
    progress: Progress

    def to_bytes(self) -> bytes:
        """Weights, optimizer and progress as one safetensors object."""
        tensors = _prefixed("model", self.model.state_dict())
        for name, parameter in self.model.named_parameters():
            tensors |= _prefixed(f"optimizer.{name}", self.optimizer.state[parameter])
        return _to_bytes(tensors, {"student": self.model.arguments, "progress": asdict(self.progress)})

    def load_bytes(self, data: bytes) -> None:
        """Continue from what `to_bytes` gave, in place. Only the dropouts of the student may differ.

        Raises:
            ValueError: the bytes are damaged or belong to another student.
        """
        tensors, metadata = _read_tensors(data)
        theirs, ours = metadata["student"], self.model.arguments
        if _weighted(theirs) != _weighted(ours):
            raise ValueError(f"a checkpoint of another student: {theirs}, here {ours}")
        self.model.load_state_dict(_tensors_below("model", tensors))
        for name, parameter in self.model.named_parameters():
            moments = _tensors_below(f"optimizer.{name}", tensors)
            self.optimizer.state[parameter] = {key: value.to(parameter) for key, value in moments.items()}
        self.progress = Progress(**metadata["progress"])
        for group in self.optimizer.param_groups:
            group["step"] = self.progress.num_updates


def student_to_bytes(model: Student) -> bytes:
    """The weights alone, and what makes the student, as one safetensors object."""
    return _to_bytes(_prefixed("model", model.state_dict()), {"student": model.arguments})


def student_from_bytes(data: bytes) -> Student:
    """The student of `student_to_bytes` or of a whole training state, on the CPU, for inference.

    Raises:
        ValueError: the bytes are damaged.
    """
    tensors, metadata = _read_tensors(data)
    model = Student(**metadata["student"])
    model.load_state_dict(_tensors_below("model", tensors))
    return model.eval()


def _weighted(arguments: dict[str, Any]) -> dict[str, Any]:
    """Of what makes a student, that which its weights follow from."""
    return {name: value for name, value in arguments.items() if name not in ("dropout", "input_dropout")}


def _to_bytes(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> bytes:
    return safetensors.torch.save(tensors, {"prvr_ray": json.dumps(metadata)})  # one key: safetensors keeps no order


def _read_tensors(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return tensors, json.loads(header["__metadata__"]["prvr_ray"])
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"not a checkpoint: {error}") from None


def _prefixed(prefix: str, tensors: dict[str, Any]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in tensors.items() if isinstance(value, torch.Tensor)}


def _tensors_below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): value for name, value in tensors.items() if name.startswith(f"{prefix}.")}
