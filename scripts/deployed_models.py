"""Networks as PyTorch exports them, with seeded random weights: what `deployed_rewriting.py` rewrites and measures."""

import torch
import torch.nn.functional as F
from torch import nn


def conv_bn(inputs, outputs, kernel=3, stride=1, padding=None, groups=1, act=True):
    padding = kernel // 2 if padding is None else padding
    layers = [nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([nn.ReLU()] if act else []))


class Fire(nn.Module):
    """Iandola et al., SqueezeNet 1.1."""

    def __init__(self, inputs, squeeze, expand):
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeeze, 1)
        self.one, self.three = nn.Conv2d(squeeze, expand, 1), nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.one(x)), F.relu(self.three(x))], 1)


def squeezenet():
    pool = nn.MaxPool2d(3, 2)
    fires = [Fire(64, 16, 64), Fire(128, 16, 64), pool, Fire(128, 32, 128), Fire(256, 32, 128), pool,
             Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)]  # fmt: skip
    head = [nn.Conv2d(512, 1000, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(nn.Conv2d(3, 64, 3, 2), nn.ReLU(), pool, *fires, *head)


class RepVGGBlock(nn.Module):
    """Ding et al., RepVGG, as it is trained: a 3x3 and a 1x1 convolution, and a normalised skip connection."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.three, self.one = (conv_bn(inputs, outputs, kernel, stride, act=False) for kernel in (3, 1))
        self.skip = nn.BatchNorm2d(inputs) if inputs == outputs and stride == 1 else None

    def forward(self, x):
        total = self.three(x) + self.one(x)
        return F.relu(total + self.skip(x) if self.skip is not None else total)


def repvgg_a0():
    blocks, width = [RepVGGBlock(3, 48, 2)], 48
    for count, outputs in ((2, 48), (4, 96), (14, 192), (1, 1280)):
        for index in range(count):
            blocks.append(RepVGGBlock(width, outputs, 1 if index else 2))
            width = outputs
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1000))


class DenseLayer(nn.Module):
    """Huang et al., DenseNet."""

    def __init__(self, inputs, growth):
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, 4 * growth, 1, bias=False),
            nn.BatchNorm2d(4 * growth), nn.ReLU(), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )  # fmt: skip

    def forward(self, x):
        return torch.cat([x, self.layers(x)], 1)


def densenet121():
    growth, width = 32, 64
    layers = [nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    for place, count in enumerate((6, 12, 24, 16)):
        for _ in range(count):
            layers.append(DenseLayer(width, growth))
            width += growth
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
        if place < 3:
            layers += [nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2)]
            width //= 2
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1000))


class Branches(nn.Module):
    """Outputs of branches side by side."""

    def __init__(self, *branches):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x):
        return torch.cat([branch(x) for branch in self.branches], 1)


def inception_v3():
    """Szegedy et al., Rethinking the Inception Architecture, figures 5 to 7 and table 1."""

    def chain(inputs, *layers):
        made = []
        for outputs, kernel, *more in layers:
            kernel = kernel if isinstance(kernel, tuple) else (kernel, kernel)
            stride, padding = more or (1, tuple(size // 2 for size in kernel))
            made += [
                nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
            inputs = outputs
        return nn.Sequential(*made)

    def pooled(inputs, outputs):
        return nn.Sequential(nn.AvgPool2d(3, 1, 1), chain(inputs, (outputs, 1)))

    def a(n, pool):
        return Branches(
            chain(n, (64, 1)), chain(n, (48, 1), (64, 5)), chain(n, (64, 1), (96, 3), (96, 3)), pooled(n, pool)
        )

    def b(w):
        row, column = (1, 7), (7, 1)
        return Branches(
            chain(768, (192, 1)), chain(768, (w, 1), (w, row), (192, column)),
            chain(768, (w, 1), (w, column), (w, row), (w, column), (192, row)), pooled(768, 192),
        )  # fmt: skip

    def c(n):
        def fork(width):
            return Branches(chain(width, (384, (1, 3))), chain(width, (384, (3, 1))))

        return Branches(
            chain(n, (320, 1)), nn.Sequential(chain(n, (384, 1)), fork(384)),
            nn.Sequential(chain(n, (448, 1), (384, 3)), fork(384)), pooled(n, 192),
        )  # fmt: skip

    pool = nn.MaxPool2d(3, 2)
    stem = [chain(3, (32, 3, 2, 0), (32, 3, 1, 0), (64, 3)), pool, chain(64, (80, 1), (192, 3, 1, 0)), pool]
    narrow = Branches(chain(288, (384, 3, 2, 0)), chain(288, (64, 1), (96, 3), (96, 3, 2, 0)), pool)
    narrower = Branches(
        chain(768, (192, 1), (320, 3, 2, 0)), chain(768, (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2, 0)), pool
    )
    return nn.Sequential(
        *stem, a(192, 32), a(256, 64), a(288, 64), narrow, b(128), b(160), b(160), b(192), narrower, c(1280), c(2048),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000),
    )  # fmt: skip


class Output(nn.Module):
    """One of what a model of transformers gives."""

    def __init__(self, model, name):
        super().__init__()
        self.model, self.name = model, name

    def forward(self, x):
        return getattr(self.model(x), self.name)


def of_transformers(kind, output, **settings):
    """A model of the library transformers by its classes' prefix, with random weights."""
    import transformers

    family, _, head = kind.partition(" ")
    config = getattr(transformers, f"{family}Config")(**settings)
    config._attn_implementation = "eager"
    return Output(getattr(transformers, f"{family}{head}")(config), output)


IMAGE, SMALL = (1, 3, 224, 224), (1, 3, 160, 160)
TOKENS = (1, 64)
SIZES = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
MODELS = {  # name: a function that makes it, the input's shape
    "ResNet-50": (lambda: of_transformers("ResNet ForImageClassification", "logits"), IMAGE),
    "MobileNetV2": (lambda: of_transformers("MobileNetV2 ForImageClassification", "logits"), IMAGE),
    "SqueezeNet 1.1": (squeezenet, IMAGE),
    "Inception-v3": (inception_v3, (1, 3, 299, 299)),
    "DenseNet-121": (densenet121, IMAGE),
    "RepVGG-A0, as trained": (repvgg_a0, IMAGE),
    "ConvNeXt-T": (
        lambda: of_transformers("ConvNext ForImageClassification", "logits", layer_scale_init_value=0.1), SMALL
    ),
    "BERT, 4 layers, classifier": (
        lambda: of_transformers("Bert ForSequenceClassification", "logits", **SIZES), TOKENS
    ),
    "BERT, 4 layers, all tokens": (lambda: of_transformers("Bert Model", "last_hidden_state", **SIZES), TOKENS),
    "ViT, 6 layers": (
        lambda: of_transformers("ViT ForImageClassification", "logits", **SIZES | {"num_hidden_layers": 6}), IMAGE
    ),
    "GPT-2, 4 layers, next token": (None, TOKENS),
    "Wav2Vec2, 4 layers": (
        lambda: of_transformers("Wav2Vec2 ForCTC", "logits", vocab_size=32, **SIZES), (1, 16000)
    ),
}  # fmt: skip


class NextToken(nn.Module):
    def __init__(self):
        super().__init__()
        import transformers

        sizes = {"n_embd": 256, "n_layer": 4, "n_head": 4, "vocab_size": 8000, "use_cache": False}
        config = transformers.GPT2Config(**sizes)
        config._attn_implementation = "eager"
        self.model = transformers.GPT2LMHeadModel(config)

    def forward(self, x):
        return self.model(x).logits[:, -1]


MODELS["GPT-2, 4 layers, next token"] = (NextToken, TOKENS)


def export(name, path):
    """Write the ONNX file of a model by torch's default exporter."""
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model = make().eval()
    for module in model.modules():  # as if trained: statistics that a fresh normalisation does not have
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.1, 0.1)
    given = torch.randint(0, 1000, shape) if shape == TOKENS else torch.randn(shape)
    with torch.no_grad():
        torch.onnx.export(model, (given,), str(path), dynamo=True, verbose=False, external_data=False)
