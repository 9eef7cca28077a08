"""Linear probe by SGD on features of random views, computed anew in every epoch.

As the published linear probes of SimCLR, MoCo, MAE and DINO are trained: the encoder stays frozen
and in eval mode, and every image is seen in another crop each time.
"""

import torch

from sslzoo.evaluation.features import outputs
from sslzoo.evaluation.finetuning import SHIFT
from sslzoo.evaluation.sgd_probe import Probe
from sslzoo.evaluation.subject import DTYPES
from sslzoo.loader import ViewLoader
from sslzoo.progress import with_bar
from sslzoo.views import ViewSpec

WHOLE = dict(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
CROPS = {"crop": {}, "shift": dict(translate=SHIFT, **WHOLE)}  # ViewSpec's own crop is 8 to 100 %


def online_probe(subject, augment, *, flip=0.5, learning_rates, weight_decays, epochs,
                 batch_size=256, seed=0):  # fmt: skip
    """Linear probes of all layers of a Subject, trained side by side on the same random views.

    The views are of the training images that are not held out. What standardises features, what
    chooses the settings and what is tested are features of the evaluation view.

    Args:
        subject: sslzoo.evaluation.subject.Subject of images.
        augment: "crop", a random resized crop of 8 to 100 % of the image, or "shift", the whole
            image shifted by up to an eighth of its side, as padded by 4 of 32 pixels and cropped.
        flip: probability of a horizontal flip.
        learning_rates, weight_decays, epochs, batch_size, seed: as of `sgd_probe`.

    Returns:
        {layer: ProbeResult}.

    Raises:
        DataError: labels are missing, or one class only.
    """
    grid = learning_rates, weight_decays, batch_size, seed, subject.device
    probes = {layer: Probe(*subject.sets(layer), *grid) for layer in subject.layers}
    fitted = next(iter(probes.values())).fitted  # the labels and the seed alone decide
    data = subject.data("train").subset(fitted)
    size, mean, std = subject.view
    spec = ViewSpec(size, flip=flip, jitter=0.0, grayscale=0.0, mean=tuple(mean), std=tuple(std),
                    **CROPS[augment])  # fmt: skip
    loader = ViewLoader(data, [spec], batch_size=batch_size, seed=seed, device=subject.device,
                        workers=subject.common.workers, drop_last=False)  # fmt: skip
    steps = epochs * loader.steps_per_epoch
    batches = (batch for epoch in range(epochs) for batch in loader.epoch(epoch))
    for step, batch in enumerate(with_bar(batches, steps, "linear probe")):
        features = features_of(subject, batch.views[0])
        for layer, probe in probes.items():
            probe.learn(features[layer], batch.labels, step / steps)
    return {layer: probe.result() for layer, probe in probes.items()}


@torch.no_grad()
def features_of(subject, x):
    """{layer: features [B, d]} of normalised views [B, C, S, S]."""
    dtype = DTYPES[subject.common.precision]
    with torch.autocast(x.device.type, dtype, enabled=dtype is not None):
        return outputs(subject.backbone, x, subject.layers, subject.common.tokens)
