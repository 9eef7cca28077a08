"""What a method learns about its data before it trains: how views are normalised, and constants."""

import math

from sslzoo.evaluation.features import evaluation_views
from sslzoo.loader import channel_statistics
from sslzoo.views import normalise

# Images that a method may look at, evenly spaced.
IMAGES = 10_000
BATCH = 256


def view_statistics(module, data):
    """Mean and standard deviation that normalise the views; 0 and 1 where a method wants RGB."""
    if getattr(module, "IS_NORMALISED", True):
        return channel_statistics(data)
    return (0.0,) * data.channels, (1.0,) * data.channels


def survey(method, data, size, mean, std, device):
    """Tell the method how its views are normalised, and show it images if it wants to see them."""
    method.normalisation = (mean, std)
    if hasattr(method, "survey"):
        some = data.subset(range(0, len(data), math.ceil(len(data) / IMAGES)))
        views = evaluation_views(some, size, BATCH)
        method.survey(normalise(x.to(device).float() / 255, mean, std) for x in views)
