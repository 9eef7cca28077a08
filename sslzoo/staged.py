"""Convolutional networks of the colour papers, as named stages one after the other."""

from collections import OrderedDict

from torch import nn


class Staged(nn.Sequential):
    """Named stages; the mean over the last map is the feature.

    Args:
        stages: {name: module}.
        num_features: channels of the last map.
    """

    def __init__(self, stages, num_features):
        super().__init__(OrderedDict(stages))
        self.num_features = num_features

    def forward_features(self, x):
        return super().forward(x)

    def forward(self, x):
        return self.forward_features(x).mean((2, 3))


def alexnet_bn(image_size, channels, width=1.0):
    """AlexNet without local response normalisation, with batch norm, fully convolutional.

    The fully connected layers are a dilated 6 x 6 convolution and a 1 x 1 convolution, and the last
    pooling has stride 1, so that the map stays at a sixteenth of the image.

    Args:
        image_size: any; for the signature of the builders.
        channels: of the images.
        width: factor of all widths; the split-brain autoencoder has 0.5.

    Source:
        Krizhevsky, Sutskever, Hinton, 2012; as in Zhang, Isola, Efros, 2017, section 4.
    """
    a, b, c, d, e, f = (int(n * width) for n in (96, 256, 384, 384, 256, 4096))

    def layer(inputs, outputs, kernel, stride=1, padding=0, dilation=1):
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False)
        return convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)

    stages = {
        "conv1": [*layer(channels, a, 11, 4, 5)],
        "conv2": [nn.MaxPool2d(3, 2, 1), *layer(a, b, 5, 1, 2)],
        "conv3": [nn.MaxPool2d(3, 2, 1), *layer(b, c, 3, 1, 1)],
        "conv4": [*layer(c, d, 3, 1, 1)],
        "conv5": [*layer(d, e, 3, 1, 1)],
        "fc6": [nn.MaxPool2d(3, 1, 1), *layer(e, f, 6, 1, 5, 2)],
        "fc7": [*layer(f, f, 1)],
    }
    return Staged({name: nn.Sequential(*layers) for name, layers in stages.items()}, f)


def vgg_dilated(image_size, channels, width=1.0):
    """The encoder of the colourisation network: conv1 to conv7, an eighth of the image at the end.

    Each stage is convolutions with ReLU and then one batch norm without scale and shift.

    Args:
        image_size: any; for the signature of the builders.
        channels: of the images.
        width: factor of all widths.

    Source:
        Zhang, Isola, Efros, "Colorful Image Colorization", 2016, the released second version.
    """
    # Output width, convolutions, stride of the last one, dilation.
    plan = [(64, 2, 2, 1), (128, 2, 2, 1), (256, 3, 2, 1), (512, 3, 1, 1), (512, 3, 1, 2),
            (512, 3, 1, 2), (512, 3, 1, 1)]  # fmt: skip
    stages, inputs = {}, channels
    for number, (outputs, count, stride, dilation) in enumerate(plan, start=1):
        outputs, layers = int(outputs * width), []
        for i in range(count):
            step = stride if i == count - 1 else 1
            layers += [
                nn.Conv2d(inputs, outputs, 3, step, dilation, dilation),
                nn.ReLU(inplace=True),
            ]
            inputs = outputs
        stages[f"conv{number}"] = nn.Sequential(*layers, nn.BatchNorm2d(outputs, affine=False))
    return Staged(stages, inputs)
