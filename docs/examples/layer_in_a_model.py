"""Put ConvNorm into a model of your own, and look at the operator norm of each layer."""

import torch
from torch import nn

from convnorm import ConvNorm2d, fixed_weights
from convnorm.spectrum import layer_norms


def main() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        ConvNorm2d(3, 8, 3, padding=1),  # the arguments of nn.Conv2d
        nn.ReLU(),
        ConvNorm2d(8, 16, 3, stride=2, padding=1, grid="native"),  # cheaper where it strides
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 2),
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    images, labels = torch.randn(32, 3, 16, 16), torch.arange(32) % 2
    for _ in range(3):
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    with fixed_weights(), torch.no_grad():  # each gain is computed once in here
        print("accuracy", (network(images).argmax(1) == labels).float().mean().item())
    for name, norms in layer_norms(network, torch.Size((3, 16, 16))).items():
        print(f"layer {name}: operator norm {norms.operator_norm:.2f}")


if __name__ == "__main__":
    main()
