"""The table of training steps of more families: what a policy is trained on that is tried on the papers' graphs.

No family of these is among the papers'. Adding one is adding a row here, then running ``scripts/build_graphs.py NAME``.
Nothing here imports torch; the family modules do.
"""

from __future__ import annotations

from typing import Any

from graphopt_gym.graphs.zoo.entry import Entry
from graphopt_gym.graphs.zoo.inference import NOTES, SOURCES

_ADAM = ("vit", "swin", "t5", "mixer", "bert", "gpt2")  # the others are trained by SGD with momentum


class TrainingEntry(Entry):
    """A training step with an optimiser's update."""

    def arguments(self, **overrides: Any) -> dict[str, Any]:
        built = super().arguments(**overrides)
        optimizer = built.get("optimizer") or ("adam" if self.family in _ADAM else "momentum")
        return built | {"train": True, "optimizer": optimizer}


def _row(family: str, **config: Any) -> TrainingEntry:
    notes = [note for note in (NOTES.get(family, ""), "batch and sizes are ours") if note]
    return TrainingEntry(family, config, SOURCES[family], "; ".join(notes), folder=("graphs", "training"))


_BASIC = {"basic": True, "size": 224}
_T5 = {"source": 128, "target": 128}

TRAINING: dict[str, TrainingEntry] = {
    "resnet18_step": _row("resnet", blocks=(2, 2, 2, 2), width=64, batch=64, **_BASIC),
    "resnet34_wide_step": _row("resnet", blocks=(3, 4, 6, 3), width=128, batch=32, **_BASIC),
    "resnet50_step": _row("resnet", blocks=(3, 4, 6, 3), size=224, batch=64),
    "resnet84_step": _row("resnet", blocks=(3, 8, 12, 3), size=224, batch=64),
    "vgg11_step": _row("vgg", depth=11, size=224, batch=64),
    "vgg16_bn_step": _row("vgg", depth=16, norm=True, size=224, batch=32),
    "vgg19_step": _row("vgg", depth=19, size=224, batch=16),
    "squeezenet10_step": _row("squeezenet", version="1.0", size=224, batch=64),
    "squeezenet11_step": _row("squeezenet", version="1.1", size=224, batch=64),
    "mobilenet_v2_step": _row("mobilenet_v2", width=1.0, size=224, batch=64),
    "mobilenet_v2_w140_step": _row("mobilenet_v2", width=1.4, size=224, batch=64),
    "efficientnet_b0_step": _row("efficientnet", size=224, batch=32),
    "efficientnet_b2_step": _row("efficientnet", size=260, batch=32, width=1.1, depth=1.2),
    "googlenet_step": _row("googlenet", size=224, batch=64),
    "googlenet_b16_step": _row("googlenet", size=224, batch=16),
    "convnext_tiny_step": _row("convnext", size=224, batch=32),
    "deeplab_r18_step": _row("deeplab", size=512, batch=8, blocks=(2, 2, 2, 2)),
    "deeplab_r34_step": _row("deeplab", size=512, batch=8, blocks=(3, 4, 6, 3)),
    "ssd300_vgg_step": _row("ssd", size=300, batch=16),
    "ssdlite_mobilenet_step": _row("ssd", size=320, batch=32, backbone="mobilenet_v2"),
    "yolov3_tiny_step": _row("yolo", size=416, batch=16, tiny=True, width=16),
    "yolov3_w24_step": _row("yolo", size=320, batch=16, width=24),
    "vit_tiny_step": _row("vit", layers=12, width=192, heads=3, size=224, batch=64),
    "vit_l6_step": _row("vit", layers=6, width=768, heads=12, size=224, batch=64),
    "vit_l4_step": _row("vit", layers=4, width=384, heads=6, size=224, batch=128),
    "swin_tiny_step": _row("swin", size=224, batch=32),
    "t5_l2_step": _row("t5", layers=2, width=512, heads=8, batch=32, **_T5),
    "t5_l4_step": _row("t5", layers=4, width=512, heads=8, batch=32, **_T5),
    "t5_l6_step": _row("t5", layers=6, width=256, heads=4, batch=64, **_T5),
    "gru_l1_step": _row("gru", layers=1, width=1024, vocabulary=30000, steps=24, batch=64),
    "gru_l2_step": _row("gru", layers=2, width=1024, vocabulary=10000, steps=20, batch=64),
    "gru_l2_w2048_step": _row("gru", layers=2, width=2048, vocabulary=30000, steps=40, batch=64),
    "gru_l3_step": _row("gru", layers=3, width=2048, vocabulary=10000, steps=16, batch=128),
    "gru_l4_step": _row("gru", layers=4, width=2048, vocabulary=30000, steps=24, batch=64),
    "gru_l4_b128_step": _row("gru", layers=4, width=1024, vocabulary=20000, steps=30, batch=128),
    "gru_l6_step": _row("gru", layers=6, width=1024, vocabulary=30000, steps=12, batch=64),
    "gru_l8_step": _row("gru", layers=8, width=1024, vocabulary=30000, steps=20, batch=64),
    "bilstm_l1_step": _row("tagger", layers=1, steps=16, batch=64),
    "bilstm_l2_step": _row("tagger", layers=2, steps=40, batch=128),
    "bilstm_l3_step": _row("tagger", layers=3, steps=24, batch=64),
    "dlrm_step": _row("dlrm", batch=2048),
    "dlrm_t8_step": _row("dlrm", batch=4096, tables=8),
    "tcn_l4_step": _row("tcn", layers=4, width=512, length=1024, batch=32),
    "tcn_l8_step": _row("tcn", layers=8, width=256, length=1024, batch=64),
    "tcn_l12_step": _row("tcn", layers=12, width=512, length=1024, batch=16),
    "dcgan_step": _row("dcgan", batch=128, discriminator=True),
    "shufflenet_v2_step": _row("shufflenet_v2", size=224, batch=64),
    "densenet63_step": _row("densenet", blocks=(3, 6, 12, 8), size=224, batch=32),
    "densenet121_step": _row("densenet", size=224, batch=32),
    "mixer_step": _row("mixer", size=224, batch=64),
    "gmlp_step": _row("mixer", gated=True, layers=12, width=256, inner=1024, size=224, batch=64),
    "retinanet_step": _row("retinanet", size=512, batch=8),
    "unet_l4_step": _row("unet", levels=4, width=64, size=256, batch=8),
    "unet_l5_step": _row("unet", levels=5, width=32, size=256, batch=8),
    "bert_l3_step": _row("bert", layers=3, width=512, heads=8, inner=2048, sequence=256, batch=32),
    "bert_l6_step": _row("bert", layers=6, width=768, heads=12, inner=3072, sequence=256, batch=32),
    "gpt2_l3_step": _row("gpt2", layers=3, width=768, heads=12, sequence=512, batch=16),
    "gpt2_l6_step": _row("gpt2", layers=6, width=1024, heads=16, sequence=512, batch=8),
}
