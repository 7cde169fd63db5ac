"""Training steps that take 0.1 to 0.4 s on one core of a processor: what ``graphopt execute`` runs for its table.

graphopt capture small_models:transformer --target cpu --out transformer.npz
"""

from graphopt_gym.graphs.zoo import bert, googlenet, resnet


def transformer():
    """BERT of three layers, width 256, eight sequences of 128 words."""
    sizes = {"layers": 3, "width": 256, "heads": 4, "inner": 1024, "vocabulary": 4000, "sequence": 128, "batch": 8}
    return bert.build(**sizes, dropout=0.0, device="cpu") | {"target": "cpu", "name": "transformer"}


def convnet():
    """ResNet of eight bottleneck blocks, eight images of 96 x 96: a chain, which two workers hardly share."""
    sizes = {"blocks": (2, 2, 2, 2), "width": 32, "classes": 100, "size": 96, "batch": 8}
    return resnet.build(**sizes, device="cpu") | {"target": "cpu", "name": "convnet"}


def branches():
    """GoogLeNet, whose blocks have four branches side by side, four images of 128 x 128."""
    return googlenet.build(size=128, batch=4, device="cpu") | {"target": "cpu", "name": "branches"}
