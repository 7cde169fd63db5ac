"""The table of further training steps: families other than the device-placement papers', for policies to learn from.

Adding one is adding a row here, then running ``scripts/build_graphs.py NAME``. Nothing here imports torch; the family
modules do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from graphopt_gym.graphs.zoo.entry import Entry
from graphopt_gym.graphs.zoo.inference import NOTES, SOURCES


@dataclass(frozen=True)
class TrainingEntry(Entry):
    """A training step with ``optimizer``; the loss is the family's own, or the sum of the means of all its outputs."""

    optimizer: str = "momentum"
    folder: tuple[str, ...] = ("graphs", "training")

    def arguments(self, **overrides: Any) -> dict[str, Any]:
        built = super().arguments(**overrides)
        built |= {"train": True, "optimizer": self.optimizer}
        if built.get("loss") is None and "labels" not in built["example_inputs"]:
            from graphopt_gym.graphs.zoo.losses import sum_of_means

            built["loss"] = sum_of_means
        return built


# Where what is said of the inference graphs does not hold here.
_NOTES = NOTES | {
    "resnet": "",
    "vit": "attention unfused; fewer layers than 12 are ours",
    "t5": "a vocabulary of 8,192; buckets of distances linear; layers and lengths are ours",
    "gru": "unrolled cells; sizes are ours",
    "tagger": "unrolled cells, without the CRF; widths are ours",
    "dlrm": "100,000 rows a table; 8 tables are ours",
    "tcn": "weight norm folded into the weights; layers, width and length are ours",
    "gpt2": "layers and sequence are ours",
    "bert": "pre-training step; layers, widths and sequence are ours",
    "densenet": "63 layers are ours",
    "mixer": "12 layers and the width of the gated one are ours",
    "yolo": "without the decoding of boxes; narrower than the paper's width of 32",
}
_LOSS = "the sum of the means of all outputs stands for the loss"
_LOSS_OF_ITS_OWN = ("resnet", "bert", "gpt2")


def _row(family: str, optimizer: str = "momentum", note: str = "", /, **config: Any) -> TrainingEntry:
    parts = ("batch is ours", _NOTES.get(family, ""), note, "" if family in _LOSS_OF_ITS_OWN else _LOSS)
    return TrainingEntry(family, config, SOURCES[family], "; ".join(filter(None, parts)), optimizer=optimizer)


TRAINING: dict[str, TrainingEntry] = {
    "resnet18_step_b64": _row("resnet", blocks=(2, 2, 2, 2), basic=True, batch=64),
    "resnet50_w128_step_b64": _row("resnet", "momentum", "twice the paper's width", width=128, batch=64),
    "resnet80_step_b32": _row("resnet", "momentum", "80 layers are ours", blocks=(3, 8, 12, 3), batch=32),
    "vgg11_step_b64": _row("vgg", depth=11, size=224, batch=64),
    "vgg16_bn_step_b32": _row("vgg", depth=16, norm=True, size=224, batch=32),
    "vgg19_step_b16": _row("vgg", depth=19, size=224, batch=16),
    "squeezenet10_step_b64": _row("squeezenet", version="1.0", size=224, batch=64),
    "squeezenet11_step_b64": _row("squeezenet", version="1.1", size=224, batch=64),
    "mobilenet_v2_step_b64": _row("mobilenet_v2", size=224, batch=64),
    "mobilenet_v2_w140_step_b64": _row("mobilenet_v2", width=1.4, size=224, batch=64),
    "efficientnet_b0_step_b32": _row("efficientnet", size=224, batch=32),
    "efficientnet_b2_step_b32": _row("efficientnet", width=1.1, depth=1.2, size=260, batch=32),
    "googlenet_step_b64": _row("googlenet", size=224, batch=64),
    "convnext_tiny_step_b32": _row("convnext", size=224, batch=32),
    "deeplab_r18_step_b8": _row("deeplab", blocks=(2, 2, 2, 2), size=512, batch=8),
    "deeplab_r34_step_b8": _row("deeplab", blocks=(3, 4, 6, 3), size=512, batch=8),
    "ssd300_vgg_step_b16": _row("ssd", size=300, batch=16),
    "ssdlite_mobilenet_step_b32": _row("ssd", backbone="mobilenet_v2", size=320, batch=32),
    "yolov3_tiny_step_b16": _row("yolo", tiny=True, width=16, size=416, batch=16),
    "yolov3_w24_step_b16": _row("yolo", width=24, size=320, batch=16),
    **{
        f"vit_l{layers}_w{width}_step_b{batch}": _row(
            "vit", "adam", layers=layers, width=width, heads=heads, size=224, batch=batch
        )
        for layers, width, heads, batch in ((12, 192, 3, 64), (6, 768, 12, 64), (4, 384, 6, 128))
    },
    "swin_tiny_step_b32": _row("swin", "adam", size=224, batch=32),
    **{
        f"t5_l{layers}_w{width}_step_b{batch}": _row(
            "t5", "adam", layers=layers, width=width, heads=heads, source=128, target=128, batch=batch
        )
        for layers, width, heads, batch in ((2, 512, 8, 32), (4, 512, 8, 32), (6, 256, 4, 64))
    },
    **{
        f"gru_l{layers}_w{width}_t{steps}_step_b{batch}": _row(
            "gru", layers=layers, width=width, vocabulary=vocabulary, steps=steps, batch=batch
        )
        for layers, width, steps, vocabulary, batch in (
            (1, 1024, 24, 10_000, 64),
            (2, 1024, 20, 30_000, 64),
            (3, 2048, 16, 30_000, 128),
            (6, 1024, 12, 10_000, 64),
            (2, 2048, 40, 30_000, 64),
            (4, 2048, 24, 30_000, 64),
            (8, 2048, 12, 20_000, 64),
        )
    },
    **{
        f"bilstm_l{layers}_t{steps}_step_b{batch}": _row("tagger", optimizer, layers=layers, steps=steps, batch=batch)
        for layers, steps, batch, optimizer in (
            (1, 16, 64, "momentum"),
            (2, 20, 64, "momentum"),
            (3, 12, 128, "adam"),
        )
    },
    "dlrm_criteo_step_b2048": _row("dlrm", batch=2048),
    "dlrm_tables8_step_b4096": _row("dlrm", tables=8, batch=4096),
    **{
        f"tcn_l{layers}_w{width}_step_b{batch}": _row("tcn", layers=layers, width=width, length=1024, batch=batch)
        for layers, width, batch in ((4, 512, 32), (8, 256, 64), (12, 512, 16))
    },
    "dcgan_both_step_b128": _row("dcgan", discriminator=True, batch=128),
    "shufflenet_v2_step_b64": _row("shufflenet_v2", size=224, batch=64),
    "densenet121_step_b32": _row("densenet", size=224, batch=32),
    "densenet63_step_b32": _row("densenet", blocks=(3, 6, 12, 8), size=224, batch=32),
    "mixer_small_step_b64": _row("mixer", "adam", size=224, batch=64),
    "gmlp_l12_w256_step_b64": _row("mixer", "adam", gated=True, layers=12, width=256, inner=1024, size=224, batch=64),
    "retinanet_fpn_step_b8": _row("retinanet", size=512, batch=8),
    "unet_l5_w32_step_b8": _row("unet", levels=5, width=32, size=256, batch=8),
    "unet_l4_w64_step_b8": _row("unet", levels=4, width=64, size=256, batch=8),
    **{
        f"bert_l{layers}_w{width}_step_b{batch}": _row(
            "bert",
            "adam",
            layers=layers,
            width=width,
            heads=width // 64,
            inner=4 * width,
            sequence=256,
            batch=batch,
        )
        for layers, width, batch in ((3, 512, 32), (6, 768, 32), (8, 1024, 16))
    },
    **{
        f"gpt2_l{layers}_w{width}_step_b{batch}": _row(
            "gpt2", "adam", layers=layers, width=width, heads=width // 64, sequence=512, batch=batch
        )
        for layers, width, batch in ((3, 768, 16), (6, 1024, 8), (9, 768, 16))
    },
}
