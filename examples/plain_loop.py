"""One line swapped: sslops.info_nce in a training loop of plain PyTorch.

    python examples/plain_loop.py
    python examples/plain_loop.py --batch 4096 --steps 20

The loop trains twice from the same start: with the loss that one writes by hand, and with sslops.
The losses are equal up to rounding; what differs is the time of a step, which is printed, and the
memory: by hand a step keeps several N x N matrices, sslops none. Needs torch and sslops, no data.
"""

import argparse
import time

import torch
import torch.nn.functional as F
from torch import nn

import sslops


def by_hand(query, key, temperature):
    """Before."""
    logits = F.normalize(query) @ F.normalize(key).T / temperature
    return F.cross_entropy(logits, torch.arange(len(query), device=query.device))


LOSSES = {"by hand": by_hand, "sslops": sslops.info_nce}  # after: same arguments, same value


def two_views(batch, generator, classes=20, side=12):
    """Noisy views [batch, side²] of random patterns, and the number of the pattern of each."""
    patterns = torch.randn(classes, side * side, generator=torch.Generator().manual_seed(1))
    labels = torch.randint(classes, (batch,), generator=generator)
    noise = torch.randn(2, batch, side * side, generator=generator)
    x0, x1 = patterns[labels] + 3 * noise
    return x0, x1, labels


def train(loss_of, steps, batch):
    """(encoder, its last loss, milliseconds of a step)."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    encoder = nn.Sequential(nn.Linear(144, 256), nn.ReLU(), nn.Linear(256, 64))
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=3e-3)
    start = time.perf_counter()
    for _ in range(steps):
        x0, x1, _ = two_views(batch, generator)
        loss = loss_of(encoder(x0), encoder(x1), temperature=0.2)  # the line
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return encoder, loss.item(), 1000 * (time.perf_counter() - start) / steps


@torch.no_grad()
def nearest_neighbour_accuracy(encode):
    """Share of new views whose nearest neighbour, by cosine, shows the same pattern."""
    x, _, labels = two_views(500, torch.Generator().manual_seed(2))
    z = F.normalize(encode(x))
    nearest = (z @ z.T).fill_diagonal_(-1).argmax(1)
    return (labels[nearest] == labels).float().mean().item()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=512, help="pairs of views")
    options = parser.parse_args(argv)
    print(f"before training: neighbours {100 * nearest_neighbour_accuracy(nn.Identity()):.1f} %")
    for name, loss_of in LOSSES.items():
        encoder, loss, time_ms = train(loss_of, options.steps, options.batch)
        accuracy = nearest_neighbour_accuracy(encoder)
        print(
            f"{name}: loss {loss:.4f}, neighbours {100 * accuracy:.1f} %, {time_ms:.1f} ms a step"
        )


if __name__ == "__main__":
    main()
