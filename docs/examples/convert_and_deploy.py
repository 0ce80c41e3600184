"""Convert a model, train it a little, look at its norms, fold it, and run it in onnxruntime."""

import sys

import onnxruntime
import timm
import torch
import torchvision

from convnorm import convert, fold
from convnorm.spectrum import layer_norms


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
    for layer, norms in layer_norms(model, images.shape[1:]).items():
        print(f"{layer}: operator norm {norms.operator_norm:.3g}")
    folded, report = fold(model, images[:1])
    print(report)
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    torch.onnx.export(folded, (images,), "model.onnx", dynamo=True, dynamic_shapes=(batch,))
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: images[:3].numpy()})
    difference = torch.from_numpy(logits) - folded(images[:3])
    print("largest difference in onnxruntime:", difference.abs().max().item())


if __name__ == "__main__":
    main(*sys.argv[1:])
