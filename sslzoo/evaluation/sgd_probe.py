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
    check_labels(train_labels, test_labels)
    classes, y = torch.unique(train_labels, return_inverse=True)
    fitted, held_out = hold_out(y.numpy(), seed)
    x = variants(train_features, train_features[fitted]).to(device)  # [2, N, d]
    settings = list(itertools.product((False, True), learning_rates, weight_decays))
    y, fitted, held_out = y.to(device), torch.as_tensor(fitted), torch.as_tensor(held_out)
    order = np.random.default_rng(seed)
    heads = Heads(settings, x.shape[-1], len(classes), batch_size, device)
    steps = epochs * -(-len(fitted) // batch_size)
    for step, rows in enumerate(shuffled(fitted, epochs, batch_size, order)):
        rows = rows.to(device)
        heads.learn(x[:, rows], y[rows], 0.5 * (1 + np.cos(np.pi * step / steps)))

    held = (heads(x[:, held_out.to(device)]).argmax(-1) == y[held_out.to(device)]).float().mean(1)
    best = held.argmax().item()
    x_test = variants(test_features, train_features[fitted]).to(device)
    ranked = heads(x_test)[best].topk(min(5, len(classes))).indices.cpu()
    hit = classes[ranked] == test_labels[:, None]
    names = ("standardised", "learning_rate", "weight_decay")
    return ProbeResult(
        hit[:, 0].float().mean().item(),
        hit.any(1).float().mean().item(),
        held[best].item(),
        dict(zip(names, settings[best], strict=True)),
    )


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


def variants(features, fitted):
    """Features as they are and standardised by the fitted ones: float32 [2, N, d]."""
    features, fitted = features.float(), fitted.float()
    std, mean = torch.std_mean(fitted, 0, correction=0)
    return torch.stack([features, (features - mean) / (std.square() + 1e-6).sqrt()])


def shuffled(rows, epochs, batch_size, generator):
    """Batches of rows, in another order each epoch."""
    for _ in range(epochs):
        order = torch.from_numpy(generator.permutation(len(rows)))
        yield from rows[order].split(batch_size)
