"""The table of inference graphs: tens to hundreds of ops a network, to partition over the chips of a package.

Adding one is adding a row here (and a family module where the architecture is new, with its split in ``entry``), then
running ``scripts/build_graphs.py NAME``. Nothing here imports torch; the family modules do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graphopt_gym.graphs.zoo.entry import Entry


@dataclass(frozen=True)
class InferenceEntry(Entry):
    """A forward pass in evaluation mode, without gradients, in ``dtype``."""

    dtype: str = "float32"
    folder: tuple[str, ...] = ("graphs", "inference")

    def arguments(self, **overrides: Any) -> dict[str, Any]:
        import torch

        built = super().arguments(**overrides)
        dtype = getattr(torch, self.dtype)
        inputs = built["example_inputs"]

        def converted(value: Any) -> Any:
            return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

        if isinstance(inputs, dict):
            inputs = {name: converted(value) for name, value in inputs.items() if name != "labels"}
        else:
            inputs = tuple(map(converted, inputs))
        return built | {
            "module": built["module"].to(dtype),
            "example_inputs": inputs,
            "train": False,
            "optimizer": None,
            "metadata": built["metadata"] | {"dtype": self.dtype},
        }


# Ours in all of them: batch sizes, number types, and image sizes and lengths other than the papers' (each such that a
# package of 36 chips with 32 MiB holds the network). The notes say what else.
SOURCES = {
    "resnet": "He, Zhang, Ren, Sun: Deep Residual Learning, CVPR 2016; with groups Xie et al.: ResNeXt, CVPR 2017",
    "vgg": "Simonyan, Zisserman: Very Deep Convolutional Networks, ICLR 2015",
    "squeezenet": "Iandola et al.: SqueezeNet, 2016",
    "mobilenet_v2": "Sandler et al.: MobileNetV2, CVPR 2018",
    "efficientnet": "Tan, Le: EfficientNet, ICML 2019",
    "inception": "Szegedy et al.: Rethinking the Inception Architecture, CVPR 2016 (Inception-v3)",
    "googlenet": "Szegedy et al.: Going Deeper with Convolutions, CVPR 2015",
    "convnext": "Liu et al.: A ConvNet for the 2020s, CVPR 2022",
    "deeplab": "Chen, Papandreou, Schroff, Adam: Rethinking Atrous Convolution, 2017 (DeepLabv3)",
    "ssd": "Liu et al.: SSD, ECCV 2016; on MobileNetV2 Sandler et al., CVPR 2018",
    "yolo": "Redmon, Farhadi: YOLOv3, 2018",
    "vit": "Dosovitskiy et al.: An Image is Worth 16x16 Words, ICLR 2021; small sizes Touvron et al., ICML 2021",
    "swin": "Liu et al.: Swin Transformer, ICCV 2021",
    "t5": "Raffel et al.: Exploring the Limits of Transfer Learning (T5), JMLR 2020",
    "transformer_xl": "Dai et al.: Transformer-XL, ACL 2019 (sizes of the enwik8 model)",
    "rnnlm": "Zaremba, Sutskever, Vinyals: Recurrent Neural Network Regularization, 2014",
    "gru": "Cho et al.: Learning Phrase Representations, EMNLP 2014 (the unit)",
    "tagger": "Huang, Xu, Yu: Bidirectional LSTM-CRF Models for Sequence Tagging, 2015",
    "dlrm": "Naumov et al.: Deep Learning Recommendation Model, 2019",
    "tcn": "Bai, Kolter, Koltun: An Empirical Evaluation of Generic Convolutional and Recurrent Networks, 2018",
    "dcgan": "Radford, Metz, Chintala: DCGAN, ICLR 2016",
    "gpt2": "Radford et al.: Language Models are Unsupervised Multitask Learners, 2019",
    "wavenet": "van den Oord et al.: WaveNet, 2016",
    "shufflenet_v2": "Ma, Zhang, Zheng, Sun: ShuffleNet V2, ECCV 2018",
    "bert": "Devlin, Chang, Lee, Toutanova: BERT, NAACL 2019; small sizes Turc et al., 2019",
    "bert_primitive": "Devlin, Chang, Lee, Toutanova: BERT, NAACL 2019 (BERT-base)",
    "densenet": "Huang, Liu, van der Maaten, Weinberger: DenseNet, CVPR 2017",
    "gnmt": "Wu et al.: Google's Neural Machine Translation System, 2016",
    "mixer": "Tolstikhin et al.: MLP-Mixer, 2021; gated: Liu, Dai, So, Le: Pay Attention to MLPs, 2021",
    "retinanet": "Lin, Goyal, Girshick, He, Dollar: Focal Loss for Dense Object Detection, ICCV 2017",
    "unet": "Ronneberger, Fischer, Brox: U-Net, MICCAI 2015",
}

NOTES = {
    "vgg": "one linear layer after global average pooling stands for the paper's three, whose first has 411 MB",
    "inception": "without the auxiliary classifier",
    "googlenet": "without auxiliary classifiers; batch norm as in later versions",
    "deeplab": "on a ResNet-18 or -34, whose last stage is dilated; nearest-neighbour upsampling for bilinear",
    "ssd": "six boxes a place at every scale, each further scale half the one before; batch norm after the backbone",
    "transformer_xl": "fewer layers than the paper's 12; lengths are ours",
    "t5": "a vocabulary of 8,192, so that the softmax fits one chip; buckets of distances linear; lengths are ours",
    "gru": "widths, lengths and a vocabulary of 10,000 are ours",
    "tagger": "without the CRF, whose search is not a tensor op; widths are ours",
    "tcn": "weight norm folded into the weights",
    "gpt2": "a vocabulary of 8,192, so that the softmax fits one chip",
    "wavenet": "fewer layers than the device-placement papers'; channels and length are ours",
    "bert": "with the classification head; no mask is given",
    "gnmt": "fewer and narrower layers than the paper's, steps and a vocabulary of 8,192 are ours",
    "retinanet": "feature pyramid and subnets, given a ResNet-50's features (or narrower ones)",
    "unet": "padded convolutions and batch norm; width and image size are ours",
    "dlrm": "100,000 rows a table, which stay on the host; fewer tables (small) and deeper towers (deep) are ours",
    "yolo": "without the decoding of boxes; the networks that are narrower than the paper's width of 32 are ours",
    "rnnlm": "steps are ours; the vocabulary is Penn Treebank's 10,000",
    "vit": "attention unfused; 4 layers in place of 12 are ours",
    "densenet": "63 layers are ours, and 40 with bottlenecks (the paper has 40 without)",
    "bert_primitive": "layer norm, softmax, GELU and each attention head in primitive ops, without an input mask; no "
    "choice of the paper that has 2,138 nodes is known but that number",
    "swin": "attention unfused; the mask is a buffer",
}


def _row(family: str, config: Mapping[str, Any], note: str = "", **options: Any) -> InferenceEntry:
    notes = [part for part in (NOTES.get(family, ""), note) if part]
    return InferenceEntry(family, config, SOURCES[family], "; ".join(notes), **options)


def _images(family: str, batch: int, size: int = 224, dtype: str = "float32", /, **config: Any) -> InferenceEntry:
    return _row(family, config | {"size": size, "batch": batch}, dtype=dtype)


_BF = "bfloat16"
_SMALL_BERT = {"positions": 512, "head": "classification", "tokens_only": True, "train": False}
_GNMT = {"vocabulary": 8192, "dropout": 0.0}

INFERENCE: dict[str, InferenceEntry] = {
    # -- train
    "resnet18_b1": _images("resnet", 1, blocks=(2, 2, 2, 2), basic=True),
    "resnet18_b4": _images("resnet", 4, 224, _BF, blocks=(2, 2, 2, 2), basic=True),
    "resnet18_b16": _images("resnet", 16, 96, blocks=(2, 2, 2, 2), basic=True),
    "resnet34_b1": _images("resnet", 1, blocks=(3, 4, 6, 3), basic=True),
    "resnet50_b1": _images("resnet", 1, blocks=(3, 4, 6, 3)),
    "resnet50_b4": _images("resnet", 4, 192, _BF, blocks=(3, 4, 6, 3)),
    "resnet101_b2": _images("resnet", 2, 224, _BF, blocks=(3, 4, 23, 3)),
    "resnext50_b1": _images("resnet", 1, blocks=(3, 4, 6, 3), groups=32),
    "vgg11_b1": _images("vgg", 1, 224, _BF, depth=11),
    "vgg16_b1": _images("vgg", 1, 224, _BF, depth=16),
    "vgg16_bn_b8": _images("vgg", 8, 96, _BF, depth=16, norm=True),
    "vgg19_b1": _images("vgg", 1, 160, depth=19),
    "squeezenet10_b1": _images("squeezenet", 1, version="1.0"),
    "squeezenet11_b4": _images("squeezenet", 4, 224, _BF, version="1.1"),
    "squeezenet11_b16": _images("squeezenet", 16, 128, _BF, version="1.1"),
    "mobilenet_v2_b1": _images("mobilenet_v2", 1),
    "mobilenet_v2_b4": _images("mobilenet_v2", 4, 160, _BF),
    "mobilenet_v2_w50_b8": _images("mobilenet_v2", 8, 128, width=0.5),
    "mobilenet_v2_w140_b1": _images("mobilenet_v2", 1, 224, _BF, width=1.4),
    "efficientnet_b0_b1": _images("efficientnet", 1),
    "efficientnet_b0_b8": _images("efficientnet", 8, 128, _BF),
    "efficientnet_b2_b1": _images("efficientnet", 1, 260, _BF, width=1.1, depth=1.2),
    "inception_v3_b1": _images("inception", 1, 299, auxiliary=False),
    "inception_v3_w8_b4": _images("inception", 4, 299, _BF, width=8, auxiliary=False),
    "googlenet_b1": _images("googlenet", 1),
    "googlenet_b4": _images("googlenet", 4, 224, _BF),
    "convnext_tiny_b1": _images("convnext", 1),
    "convnext_tiny_b4": _images("convnext", 4, 224, _BF),
    "convnext_small_b2": _images("convnext", 2, 224, _BF, blocks=(3, 3, 27, 3)),
    "deeplab_r18_b1": _images("deeplab", 1, 256, blocks=(2, 2, 2, 2)),
    "deeplab_r34_b2": _images("deeplab", 2, 256, _BF, blocks=(3, 4, 6, 3)),
    "ssd300_vgg_b1": _images("ssd", 1, 300, _BF),
    "ssdlite_mobilenet_b1": _images("ssd", 1, 320, _BF, backbone="mobilenet_v2"),
    "yolov3_tiny_b1": _images("yolo", 1, 416, _BF, tiny=True, width=16),
    "yolov3_w24_b1": _images("yolo", 1, 192, _BF, width=24),
    "yolov3_w16_b1": _images("yolo", 1, 256, blocks=(1, 1, 2, 2, 1), width=16),
    "vit_tiny_b1": _images("vit", 1, layers=12, width=192, heads=3),
    "vit_small_b4": _images("vit", 4, 224, _BF, layers=12, width=384, heads=6),
    "vit_base_b1": _images("vit", 1, layers=12, width=768, heads=12),
    "vit_tiny_l4_b16": _images("vit", 16, 224, _BF, layers=4, width=192, heads=3),
    "swin_tiny_b1": _images("swin", 1),
    "swin_tiny_b2": _images("swin", 2, 224, _BF),
    "t5_tiny_b8": _row("t5", {"layers": 4, "width": 256, "heads": 4, "inner": 1024, "batch": 8}),
    "t5_mini_b1": _row("t5", {"layers": 4, "width": 384, "heads": 8, "inner": 1536, "batch": 1}, dtype=_BF),
    "t5_small_l2_b1": _row("t5", {"layers": 2, "batch": 1}),
    "t5_small_l3_b2": _row("t5", {"layers": 3, "source": 128, "batch": 2}, dtype=_BF),
    **{
        f"transformer_xl_l{layers}_b{batch}": _row(
            "transformer_xl",
            {"layers": layers, "width": 512, "heads": 8, "head_width": 64, "inner": 2048, "vocabulary": 204}
            | {"length": 128, "memory": 128, "batch": batch, "dropout": 0.0, "train": False},
        )
        for layers, batch in ((3, 4), (6, 1))
    },
    **{
        f"lstm_l{layers}_w{width}_t{steps}_b{batch}": _row(
            "rnnlm", {"layers": layers, "width": width, "vocabulary": 10_000, "steps": steps, "batch": batch}
        )
        for layers, width, steps, batch in (
            (1, 200, 20, 16),
            (2, 200, 10, 4),
            (2, 650, 5, 1),
            (2, 650, 20, 8),
            (3, 650, 12, 16),
        )
    },
    **{
        f"gru_l{layers}_w{width}_t{steps}_b{batch}": _row(
            "gru", {"layers": layers, "width": width, "steps": steps, "batch": batch, "every": every}
        )
        for layers, width, steps, batch, every in ((1, 512, 10, 8, True), (2, 512, 16, 4, True), (3, 256, 8, 16, False))
    },
    "bilstm_l1_t8_b8": _row("tagger", {"layers": 1, "steps": 8, "batch": 8}),
    "bilstm_l2_t10_b4": _row("tagger", {"layers": 2, "steps": 10, "batch": 4}),
    "dlrm_criteo_b16": _row("dlrm", {"batch": 16}),
    "dlrm_small_b1": _row("dlrm", {"batch": 1, "tables": 8, "bottom": (512, 256, 64, 16), "top": (512, 256, 1)}),
    "dlrm_deep_b16": _row(
        "dlrm", {"batch": 16, "bottom": (1024, 1024, 512, 256, 128), "top": (1024, 1024, 1024, 512, 256, 1)}
    ),
    "tcn_music_b8": _row("tcn", {"layers": 4, "batch": 8}),
    "tcn_long_b4": _row("tcn", {"layers": 10, "width": 256, "kernel": 3, "length": 1024, "batch": 4}),
    "tcn_short_b16": _row("tcn", {"layers": 6, "width": 100, "kernel": 3, "length": 128, "batch": 16}),
    "dcgan_generator_b16": _row("dcgan", {"batch": 16}),
    "dcgan_both_b4": _row("dcgan", {"batch": 4, "discriminator": True}),
    # -- validation
    "gpt2_l4_b1": _row(
        "gpt2",
        {"layers": 4, "width": 768, "heads": 12, "vocabulary": 8192, "sequence": 128, "batch": 1}
        | {"tokens_only": True, "train": False},
        "4 of the 12 layers",
    ),
    "wavenet_1x10_b1": _row(
        "wavenet",
        {"stacks": 1, "layers": 10, "cycle": 10, "width": 64, "skip": 256, "length": 4096, "batch": 1},
    ),
    "wavenet_2x10_b2": _row(
        "wavenet",
        {"stacks": 2, "layers": 10, "cycle": 10, "width": 64, "skip": 128, "length": 2048, "batch": 2},
    ),
    "shufflenet_v2_b1": _images("shufflenet_v2", 1),
    "shufflenet_v2_w50_b8": _images("shufflenet_v2", 8, width="0.5"),
    # -- test
    "densenet121_b1": _images("densenet", 1),
    "densenet40_b8": _images("densenet", 8, 32, blocks=(6, 6, 6), growth=12, first=24, large=False, classes=10),
    "densenet63_b2": _images("densenet", 2, 160, _BF, blocks=(3, 6, 12, 8), growth=32),
    **{
        f"gnmt_l2_t{steps}_b{batch}": _row(
            "gnmt",
            {"layers": 2, "width": 256, "source_steps": steps, "target_steps": steps, "batch": batch} | _GNMT,
        )
        for steps, batch in ((2, 1), (5, 8), (8, 16))
    },
    **{
        f"bert_{name}_b{batch}": _row(
            "bert",
            {"layers": layers, "width": width, "heads": width // 64, "inner": 4 * width, "sequence": 128}
            | {"batch": batch, **_SMALL_BERT},
        )
        for name, layers, width, batch in (
            ("tiny", 2, 128, 16),
            ("mini", 4, 256, 4),
            ("medium", 8, 512, 1),
            ("base", 12, 768, 1),
        )
    },
    "mixer_small_b4": _images("mixer", 4),
    "gmlp_tiny_b1": _images("mixer", 1, gated=True, layers=30, width=128, inner=768),
    "retinanet_fpn_b1": _images("retinanet", 1, 256),
    "retinanet_fpn_small_b4": _images("retinanet", 4, 256, _BF, channels=(128, 256, 512), width=128, depth=2),
    "unet_w32_b1": _images("unet", 1, 128, _BF, levels=5, width=32),
    "unet_l3_b2": _images("unet", 2, 128, _BF, levels=3, width=48),
    # -- in no split
    "bert_primitive": _row("bert_primitive", {"layers": 12, "width": 768, "heads": 12, "inner": 3072}),
}
