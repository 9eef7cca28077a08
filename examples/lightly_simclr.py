"""SimCLR by lightly's parts, with the loss of sslops: one import changes.

    pip install lightly
    python examples/lightly_simclr.py photos/ --epochs 10

photos/ is a folder of images. Transform, data set and projection head are lightly's. The loss has
the arguments and the value of lightly's NTXentLoss, checked on the first batch; it keeps no
(2N)² matrix, and with --memory_bank its bank of keys is saved with the model.
"""

import argparse

import torch
from lightly.data import LightlyDataset
from lightly.loss import NTXentLoss as TheirLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from torch import nn
from torchvision.models import resnet18

from sslops.compat import NTXentLoss  # before: from lightly.loss import NTXentLoss


class SimCLR(nn.Module):
    """An encoder and lightly's head."""

    def __init__(self):
        super().__init__()
        self.backbone = resnet18()
        self.backbone.fc = nn.Identity()
        self.head = SimCLRProjectionHead(512, 512, 128)

    def forward(self, x):
        return self.head(self.backbone(x))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="a folder of images")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--memory_bank", type=int, default=0, help="keys to keep; 0 is none")
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    transform = SimCLRTransform(input_size=options.image_size, gaussian_blur=0.0)
    data = LightlyDataset(options.folder, transform=transform)
    loader = torch.utils.data.DataLoader(data, options.batch_size, shuffle=True, drop_last=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = SimCLR().to(device)
    bank = (options.memory_bank, 128) if options.memory_bank else 0
    criterion = NTXentLoss(temperature=0.5, memory_bank_size=bank).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06, momentum=0.9, weight_decay=5e-4)
    losses = []
    for epoch in range(options.epochs):
        for (x0, x1), *_ in loader:
            z0, z1 = model(x0.to(device)), model(x1.to(device))
            if not losses and not bank:
                theirs = TheirLoss(temperature=0.5)(z0, z1).item()
            loss = criterion(z0, z1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"epoch {epoch}: loss {sum(losses[-len(loader) :]) / len(loader):.4f}")
    if not bank:
        print(f"first batch: sslops {losses[0]:.5f}, lightly {theirs:.5f}")


if __name__ == "__main__":
    main()
