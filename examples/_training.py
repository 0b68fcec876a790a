# SPDX-License-Identifier: MIT
"""Trains several models on scikit-learn's digits with the same batches and schedule, interleaved in time."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from rich.progress import track
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

BATCH_SIZE = 64
MAX_LEARNING_RATE = 0.1


@dataclass(frozen=True)
class Digits:
    """Images ``[n, 1, 8, 8]`` in [0, 1] and labels ``[n]``; a fifth of every digit is for testing."""

    train_x: Tensor
    test_x: Tensor
    train_y: Tensor
    test_y: Tensor

    @classmethod
    def load(cls, samples: int, seed: int, device: str) -> "Digits":
        """The first ``samples`` digits that scikit-learn has (1797 at most), split at random."""
        x, y = (torch.from_numpy(array[:samples]).to(device) for array in load_digits(return_X_y=True))
        x = x.float().reshape(-1, 1, 8, 8) / 16
        return cls(*train_test_split(x, y, test_size=0.2, stratify=y.cpu(), random_state=seed))


class Training:
    """The training of one model: the loss of every step, the test accuracy of every epoch, the seconds of all steps."""

    def __init__(self, model: nn.Module, digits: Digits, steps: int) -> None:
        self.model, self.digits = model, digits
        self.dtype = next(model.parameters()).dtype
        self.optimizer = torch.optim.SGD(model.parameters(), momentum=0.9, weight_decay=1e-4)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, MAX_LEARNING_RATE, total_steps=steps)
        self._losses: list[float] = []
        self.accuracies: list[float] = []
        self.seconds = 0.0

    @property
    def losses(self) -> Tensor:
        """The loss of every step, in the dtype of the model."""
        return torch.tensor(self._losses, dtype=self.dtype)

    def step(self, batch: Tensor) -> None:
        """Take one step on the training images with the indices ``batch``."""
        start = time.perf_counter()
        logits = self.model(self.digits.train_x[batch].to(self.dtype))
        loss = F.cross_entropy(logits, self.digits.train_y[batch])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self._losses.append(loss.item())
        self.seconds += time.perf_counter() - start

    @torch.no_grad()
    def test(self) -> None:
        """Measure the accuracy on the test images."""
        self.model.eval()
        predictions = self.model(self.digits.test_x.to(self.dtype)).argmax(dim=1)
        self.model.train()
        self.accuracies.append((predictions == self.digits.test_y).double().mean().item())


def train_together(models: Sequence[nn.Module], digits: Digits, epochs: int, seed: int) -> list[Training]:
    """Train all ``models``, taking turns at every batch, so that a slow moment of the machine affects all of them."""
    count = len(digits.train_x)
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(count, generator=generator).split(BATCH_SIZE) for _ in range(epochs)]
    trainings = [Training(model, digits, steps=sum(map(len, orders))) for model in models]
    for batches in track(orders, "training, epochs"):
        for batch in batches:
            for training in trainings:
                training.step(batch)
        for training in trainings:
            training.test()
    return trainings
