"""The features of each layer that is judged, one after the other."""


def each_layer(subject):
    """(prefix of the metric, [train features, labels, test features, labels]) of each layer."""
    for layer in subject.layers:
        yield prefix(layer), subject.sets(layer)


def prefix(layer):
    """`blocks.3: `, or nothing for the encoder's output."""
    return f"{layer}: " if layer else ""
