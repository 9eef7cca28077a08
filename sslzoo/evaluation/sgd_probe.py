"""Linear probe by SGD: every learning rate, weight decay and front layer trained at once."""

import itertools

import numpy as np
import torch
import torch.nn.functional as F

from sslzoo.evaluation.knn import check_labels
from sslzoo.evaluation.linear_probe import ProbeResult, hold_out

LEARNING_RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
WEIGHT_DECAYS = (0.0, 1e-6)
MOMENTUM = 0.9


def sgd_probe(
    train_features, train_labels, test_features, test_labels, *, learning_rates=LEARNING_RATES,
    weight_decays=WEIGHT_DECAYS, epochs=100, batch_size=256, seed=0, device="cpu",
):  # fmt: skip
    """Linear probe on cached features: SGD, cosine schedule, the best of a grid of settings.

    The grid is learning rates x weight decays x {features as they are, standardised as a batch
    norm without affine part does}. All heads learn in one batched product; the one that is best
    on a tenth of the training samples is judged on the test set.

    Args:
        train_features: [N, d]; train_labels: int64 [N].
        test_features: [M, d]; test_labels: int64 [M].
        learning_rates: at a batch of 256; scaled by batch_size / 256.
        weight_decays: of the weights, not the biases.
        epochs: passes over the training samples.
        batch_size: samples in a step.
        seed: of the held-out samples and the order.
        device: where to train.

    Returns:
        ProbeResult; `chosen` holds learning_rate, weight_decay and standardised.

    Raises:
        DataError: labels are missing, or one class only.
    """
    sets = train_features, train_labels, test_features, test_labels
    probe = Probe(*sets, learning_rates, weight_decays, batch_size, seed, device)
    steps = epochs * -(-len(probe.fitted) // batch_size)
    order = np.random.default_rng(seed)
    for step, rows in enumerate(shuffled(probe.fitted, epochs, batch_size, order)):
        probe.learn(train_features[rows], train_labels[rows], step / steps)
    return probe.result()


class Probe:
    """All heads of a grid of settings: `learn` batch by batch, then `result`.

    Args:
        train_features, train_labels, test_features, test_labels: as of `sgd_probe`; a tenth of the
            training samples is held out to choose the settings on.

    Attributes:
        fitted: rows of the training samples to learn from, int64 on the CPU.
    """

    def __init__(self, train_features, train_labels, test_features, test_labels, learning_rates,
                 weight_decays, batch_size, seed, device):  # fmt: skip
        check_labels(train_labels, test_labels)
        self.classes = train_labels.unique()
        self.sets, self.device = (train_features, train_labels, test_features, test_labels), device
        parts = hold_out(self.class_of(train_labels).numpy(), seed)
        self.fitted, self.held_out = map(torch.as_tensor, parts)
        fitted = train_features[self.fitted].float().to(device)
        self.std, self.mean = torch.std_mean(fitted, 0, correction=0)
        self.settings = list(itertools.product((False, True), learning_rates, weight_decays))
        width = train_features.shape[1]
        self.heads = Heads(self.settings, width, len(self.classes), batch_size, device)

    def class_of(self, labels):
        """Numbers 0, 1, ... of labels that are among those of the training samples."""
        return torch.searchsorted(self.classes, labels)

    def variants(self, features):
        """Features as they are and standardised by the fitted ones: float32 [2, B, d]."""
        x = features.float().to(self.device)
        return torch.stack([x, (x - self.mean) / (self.std.square() + 1e-6).sqrt()])

    def learn(self, features, labels, done):
        """One step; `done` is the share of steps before it, for the cosine schedule."""
        y = self.class_of(labels.cpu()).to(self.device)
        self.heads.learn(self.variants(features), y, 0.5 * (1 + np.cos(np.pi * done)))

    def result(self):
        """ProbeResult of the head that is best on the held-out samples."""
        x, y, x_test, y_test = self.sets
        found = self.heads(self.variants(x[self.held_out])).argmax(-1).cpu()
        held = (found == self.class_of(y[self.held_out])).float().mean(1)
        best = held.argmax().item()
        scores = self.heads(self.variants(x_test))[best]
        hit = self.classes[scores.topk(min(5, len(self.classes))).indices.cpu()] == y_test[:, None]
        names = ("standardised", "learning_rate", "weight_decay")
        chosen = dict(zip(names, self.settings[best], strict=True))
        top1, top5 = hit[:, 0].float().mean().item(), hit.any(1).float().mean().item()
        return ProbeResult(top1, top5, held[best].item(), chosen)


class Heads:
    """Linear classifiers [heads, d, classes], one for each setting, with Nesterov momentum."""

    def __init__(self, settings, d, classes, batch_size, device):
        standardised, rates, decays = zip(*settings, strict=True)
        self.variant = torch.tensor(standardised, device=device).long()
        self.rate = torch.tensor(rates, device=device)[:, None, None] * batch_size / 256
        self.decay = torch.tensor(decays, device=device)[:, None, None]
        self.weight = torch.zeros(len(settings), d, classes, device=device)
        self.bias = torch.zeros(len(settings), 1, classes, device=device)
        self.speed = [torch.zeros_like(self.weight), torch.zeros_like(self.bias)]

    def __call__(self, x):
        """Logits [heads, B, classes] of both variants of the features [2, B, d]."""
        return torch.baddbmm(self.bias, x[self.variant], self.weight)

    def learn(self, x, y, schedule):
        """One step on a batch: the gradient of cross-entropy is softmax - one-hot."""
        error = self(x).softmax(-1) - F.one_hot(y, self.weight.shape[-1])
        error /= len(y)
        gradients = (
            x[self.variant].mT @ error + self.decay * self.weight,
            error.sum(1, keepdim=True),
        )
        parameters = (self.weight, self.bias)
        for value, gradient, speed in zip(parameters, gradients, self.speed, strict=True):
            speed.mul_(MOMENTUM).add_(gradient)
            value.sub_(self.rate * schedule * (gradient + MOMENTUM * speed))


def shuffled(rows, epochs, batch_size, generator):
    """Batches of rows, in another order each epoch."""
    for _ in range(epochs):
        order = torch.from_numpy(generator.permutation(len(rows)))
        yield from rows[order].split(batch_size)
