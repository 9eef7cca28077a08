"""Confusion matrices, counted and drawn for people."""

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INCHES_A_CLASS = 0.5
MOST_NUMBERED = 12  # classes; with more, the numbers in the squares are unreadable


def confusion_matrix(truth, predicted, classes):
    """Counts [classes, classes], float32: rows are the truth, columns the prediction."""
    pairs = truth.flatten() * classes + predicted.flatten()
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes).float()


def confusion_picture(counts, names, title):
    """A confusion matrix as shares of each row.

    Args:
        counts: [K, K], rows are the truth.
        names: K words.
        title: above the picture.

    Returns:
        uint8 [3, H, W].
    """
    share = (counts / counts.sum(1, keepdim=True).clamp(min=1)).cpu().numpy()
    side = 1.6 + INCHES_A_CLASS * len(names)
    figure = Figure((side, side), dpi=100, layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    axes.imshow(share, cmap="viridis", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    if len(names) <= MOST_NUMBERED:
        for (row, column), value in np.ndenumerate(share):
            axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=8,
                      color="white" if value < 0.6 else "black")  # fmt: skip
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy()).permute(2, 0, 1)
