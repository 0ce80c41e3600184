"""Convert a model, train it a little, look at its spectra, fold it, and run it in onnxruntime."""

import sys

import onnxruntime
import timm
import torch
import torchvision

from convnorm import ConvNorm2d, convert, fold
from convnorm.singular_values import layer_spectra


def main(name: str = "torchvision:resnet50", size: str = "64") -> None:
    library, _, network = name.partition(":")
    make = timm.create_model if library == "timm" else torchvision.models.get_model
    torch.manual_seed(0)
    model, images = make(network, num_classes=10), torch.rand(8, 3, int(size), int(size))
    model, report = convert(model, calibrate=images)  # load pretrained weights before
    print(report)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), torch.arange(8)).backward()
        optimizer.step()
    layer = next(layer for layer in model.eval().modules() if isinstance(layer, ConvNorm2d))
    for stage, values in layer_spectra(layer, (16, 16)).items():  # on maps of 16x16
        print(f"{stage}: singular values from {values[0]:.3g} to {values[-1]:.3g}")
    folded, report = fold(model, images[:1])
    print(report)
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    torch.onnx.export(folded, (images,), "model.onnx", dynamo=True, dynamic_shapes=(batch,))
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: images[:3].numpy()})
    print("largest difference:", (torch.from_numpy(logits) - folded(images[:3])).abs().max().item())


if __name__ == "__main__":
    main(*sys.argv[1:])
