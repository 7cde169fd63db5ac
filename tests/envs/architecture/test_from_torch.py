from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from graphopt_gym.envs.architecture.from_torch import from_module, import_module  # noqa: E402
from graphopt_gym.envs.architecture.seeds import load_seed  # noqa: E402
from graphopt_gym.errors import InputError  # noqa: E402
from graphopt_gym.graphs.zoo import convnext, densenet, efficientnet, resnet, vit  # noqa: E402


def assert_same_function(module, image):
    module.eval()
    architecture, weights = import_module(module, image)
    mine = architecture.to_module(seed=None)
    missing = mine.load_state_dict(weights, strict=False)
    assert not missing.missing_keys
    assert not missing.unexpected_keys
    x = torch.randn(3, *image)
    with torch.no_grad():
        torch.testing.assert_close(mine.eval()(x), module(x), rtol=1e-4, atol=1e-5)
    assert architecture.parameters == sum(p.numel() for p in module.parameters())
    return architecture


@pytest.mark.parametrize(
    ("zoo", "sizes"),
    [
        (resnet, {"blocks": (2, 1), "width": 8, "classes": 10, "size": 32, "batch": 2, "train": False}),
        (efficientnet, {"width": 0.25, "depth": 0.3, "size": 32, "classes": 10}),
        (vit, {"layers": 2, "width": 24, "heads": 2, "patch": 8, "size": 32, "classes": 10}),
        (convnext, {"blocks": (1, 1, 1, 1), "widths": (4, 8, 8, 16), "classes": 10, "size": 32}),
        (densenet, {"blocks": (2, 2), "growth": 4, "classes": 10, "size": 32}),
    ],
    ids=lambda value: getattr(value, "__name__", "").rpartition(".")[2],
)
def test_from_module__computes_what_the_module_computes(zoo, sizes):
    assert_same_function(zoo.build(**sizes, device="cpu")["module"], (3, 32, 32))


@pytest.mark.parametrize("name", ["resnet_8", "vit_8", "efficientnet_8", "cnn_8", "resnet_28"])
def test_from_module__an_architecture_comes_back(name):
    seed = load_seed(name)
    assert from_module(seed.to_module(), seed.input_shapes[0]) == seed


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 4, 4, padding="valid"), nn.GroupNorm(2, 8)
        self.position = nn.Parameter(torch.randn(1, 16, 8))
        self.qkv, self.drop = nn.Linear(8, 24), nn.Dropout(0.2)
        self.norm2, self.head = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.norm(self.conv(x)).flatten(2).transpose(1, 2) + self.position
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.norm2(x + self.drop(y) / 2)
        return self.head(F.silu(x[:, 1:]).mean(1).unsqueeze(1).squeeze(1))


def test_from_module__attention_slices_and_positions():
    architecture = assert_same_function(Mixed(), (3, 16, 16))
    assert {"group_norm", "layer_norm", "matmul", "softmax", "param", "slice", "dropout"} <= {
        op.kind for op in architecture.ops
    }


def test_from_module__leaves_the_module_as_it_is():
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Flatten())
    module[1].eval()
    architecture = from_module(module, (3, 8, 8))
    assert [op.kind for op in architecture.ops[1:]] == ["conv", "batch_norm", "relu", "dropout", "reshape"]
    assert [one.training for one in module] == [True, False, True, True, True]
    assert module[1].num_batches_tracked == 0
    assert not module[1].running_mean.any()


def test_from_module__names_all_that_is_outside():
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Hardswish(), nn.Upsample(scale_factor=2), nn.ELU(), nn.ELU(), nn.GELU("tanh")
    )
    with pytest.raises(InputError) as caught:
        from_module(module, (3, 8, 8))
    message = str(caught.value)
    kinds = "hardswish, upsample_nearest2d, elu x2, gelu (approximated by tanh)"
    assert message == f"Sequential is outside the grammar of architectures: {kinds}"
    assert "\n" not in message


def test_from_module__lists_several_that_do_not_depend_on_each_other():
    class Branches(nn.Module):
        def forward(self, x):
            return F.elu(x) + F.elu(x * 2) + torch.tanh(x) + F.gelu(x, approximate="tanh") + x.flip(1)

    with pytest.raises(InputError, match=r"elu x2, tanh, gelu \(approximated by tanh\), flip"):
        from_module(Branches(), (3, 8, 8))


@pytest.mark.parametrize(
    ("module", "image", "words"),
    [
        ("no module", (3, 8, 8), "give a torch.nn.Module"),
        (nn.Linear(4, 4), (0, 3), "give the shape of one image"),
        (nn.Linear(4, 4), (3, 8, 8), "cannot be traced on images"),
        (nn.Identity(), (3, 8, 8), "returns its input"),
        (nn.BatchNorm2d(3, affine=False), (3, 8, 8), "without weights"),
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (3, 8, 8), "pad"),
        (nn.Flatten(0), (3, 8, 8), "flatten|view|reshape"),
    ],
)
def test_from_module__bad_input_is_one_line(module, image, words):
    with pytest.raises(InputError, match=words) as caught:
        from_module(module, image)
    assert "\n" not in str(caught.value)
