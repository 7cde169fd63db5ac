"""Stages: from which modules they are made, and that a placement by them keeps blocks whole and devices busy."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from graphopt_gym.envs.placement.groups import make_group_graph
from graphopt_gym.envs.placement.partition import expert
from graphopt_gym.envs.placement.problem import PlacementProblem

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from graphopt_gym.graphs.capture import capture  # noqa: E402

WIDTH = 16


class Block(nn.Module):
    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norm, self.first, self.second = (
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width),
        )
        self.last = nn.LayerNorm(width)

    def forward(self, x):
        return self.last(x + self.second(self.first(self.norm(x)).relu()))


class Experts(nn.Module):
    """A layer with attention's place taken by a product, and four experts side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.gate = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)
        self.experts = nn.ModuleList([Block() for _ in range(4)])

    def forward(self, x):
        x = x + self.mix(x)
        shares = self.gate(x).softmax(-1)
        return x + sum(shares[..., i : i + 1] * expert(x) for i, expert in enumerate(self.experts))


class Stack(nn.Module):
    def __init__(self, blocks: int, block: type[nn.Module] = Block) -> None:
        super().__init__()
        self.embed, self.layers, self.norm = nn.Linear(WIDTH, WIDTH), nn.ModuleList(), nn.LayerNorm(WIDTH)
        self.layers.extend(block() for _ in range(blocks))

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class Wrapped(nn.Module):
    """As library models are: the blocks one level down, the head beside."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.head, self.model = nn.Linear(WIDTH, 3), inner  # registered in another order than they run

    def forward(self, x):
        return self.head(self.model(x))


class Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decoder, self.encoder, self.project = Stack(2), Stack(3), nn.Linear(WIDTH, 5)

    def forward(self, x):
        return self.project(self.decoder(x + self.encoder(x)))


class Nested(nn.Module):
    """Stages of blocks with a reduction between: names are numbered, the last stage has one block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(WIDTH, WIDTH)
        for number, count in enumerate((2, 3, 1), start=1):
            setattr(self, f"layer{number}", nn.Sequential(*[Block() for _ in range(count)]))
            setattr(self, f"reduce{number}", nn.Linear(WIDTH, WIDTH))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x):
        x = self.stem(x)
        for number in (1, 2, 3):
            x = getattr(self, f"reduce{number}")(getattr(self, f"layer{number}")(x))
        return self.head(x)


class Recurrent(nn.Module):
    """One cell for all steps."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(WIDTH, WIDTH)

    def forward(self, x):
        state = torch.zeros_like(x)
        for _ in range(12):
            state = self.cell(x, state)
        return state


class Functions(nn.Module):
    """All work is in the root's own operators."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(WIDTH, WIDTH)) for _ in range(6))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x):
        for weight in self.weights:
            x = (x @ weight).relu()
        return self.norm(x)


class Distinct(nn.Module):
    """Parts of which no two are alike."""

    def __init__(self) -> None:
        super().__init__()
        self.front = Wrapped(nn.Linear(WIDTH, WIDTH))
        self.middle = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, WIDTH))
        self.block, self.end = Block(), nn.Linear(WIDTH, 2)

    def forward(self, x):
        return self.end(self.block(self.middle(self.front(x))))


def stages_of(module: nn.Module, **arguments) -> list[list[str]]:
    graph = capture(module, torch.zeros(4, 8, WIDTH), loss=lambda out: out.sum(), **arguments)
    return [stage["modules"] for stage in graph.metadata["stages"]]


def test_stages__blocks_below_the_root__with_what_is_around_them():
    assert stages_of(Wrapped(Stack(3))) == [
        ["model.embed", "model.layers.0"],
        ["model.layers.1"],
        ["model.layers.2", "model.norm", "head", "loss"],
    ]


def test_stages__several_stacks__in_the_order_in_which_they_run():
    assert [sorted(stage) for stage in stages_of(Translator())] == [
        ["encoder.embed", "encoder.layers.0"],
        ["encoder.layers.1"],
        ["encoder.layers.2", "encoder.norm"],
        ["decoder.embed", "decoder.layers.0"],
        ["decoder.layers.1", "decoder.norm", "loss", "project"],
    ]


def test_stages__experts_side_by_side_are_no_blocks():
    blocks = [f"model.layers.{index}" for index in range(4)]
    found = stages_of(Wrapped(Stack(4, Experts)))
    assert [[path for path in stage if path in blocks] for stage in found] == [[block] for block in blocks]
    assert not [path for stage in found for path in stage if "experts" in path]


def test_stages__stages_of_blocks_are_taken_apart():
    assert [sorted(stage) for stage in stages_of(Nested(), train=False)] == [
        ["layer1.0", "stem"],
        ["layer1.1", "reduce1"],
        ["layer2.0"],
        ["layer2.1"],
        ["layer2.2", "reduce2"],
        ["head", "layer3", "loss", "reduce3"],
    ]


def test_stages__a_block_that_does_most_of_the_work_is_taken_apart():
    model = nn.Sequential(Stack(8), Stack(1), Stack(1))
    found = stages_of(model)
    assert len(found) == 10
    assert found[3] == ["0.layers.3"]


@pytest.mark.parametrize("module", [Recurrent(), Functions()], ids=lambda module: type(module).__name__)
def test_stages__what_modules_cannot_divide__is_left_to_the_order(module):
    graph = capture(module, torch.zeros(4, WIDTH), loss=lambda out: out.sum())
    assert graph.metadata["stages"] == []
    decision = next(expert(PlacementProblem(graph, "v100x2", grouping="op")))
    assert set(decision.tolist()) == {0, 1}


def test_stages__without_repetition__parts_in_order():
    found = stages_of(Distinct(), train=False)
    heads = [stage[0] for stage in found]
    assert heads[:2] == ["front.model", "front.head"]
    assert heads.index("middle.0") < heads.index("middle.2") < heads.index("end")
    assert len(found) >= 5


# ---- models of libraries: configurations only, small widths, the true structure


def small(**more):
    return {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 96, **more}


def encoder_decoder(**more):
    stack = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    return {"d_model": 32, "encoder_layers": 4, "decoder_layers": 4, **stack, **more}


TOKENS = {"input_ids": (2, 16)}
IMAGE = {"pixel_values": (2, 3, 64, 64)}
LATENT = {"sample": (2, 4, 16, 16), "timestep": (2,)}
UNET = {"norm_num_groups": 8, "attention_head_dim": 8, "cross_attention_dim": 32, "sample_size": 16}
# name: (class, configuration, shapes of inputs, the blocks, how many)
TRANSFORMERS = {
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 32, "n_head": 4, "vocab_size": 96}, TOKENS, r"transformer\.h\.\d+", 12),
    "bert": ("BertForMaskedLM", small(num_hidden_layers=12), TOKENS, r"bert\.encoder\.layer\.\d+", 12),
    "llama": ("LlamaForCausalLM", small(num_hidden_layers=8), TOKENS, r"model\.layers\.\d+", 8),
    "t5": ("T5ForConditionalGeneration",
           {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 6, "num_heads": 4, "vocab_size": 96},
           TOKENS | {"decoder_input_ids": (2, 16)}, r"(encoder|decoder)\.block\.\d+", 12),
    "bart": ("BartForConditionalGeneration", encoder_decoder(vocab_size=96), TOKENS,
             r"model\.(encoder|decoder)\.layers\.\d+", 8),
    "whisper": ("WhisperForConditionalGeneration",
                encoder_decoder(vocab_size=96, max_source_positions=50, num_mel_bins=16, pad_token_id=0),
                {"input_features": (2, 16, 100), "decoder_input_ids": (2, 16)},
                r"model\.(encoder|decoder)\.layers\.\d+", 8),
    "vit": ("ViTForImageClassification", small(num_hidden_layers=12, image_size=64), IMAGE,
            r"vit\.(encoder\.)?layers?\.\d+", 12),
    "swin": ("SwinForImageClassification",
             {"image_size": 64, "patch_size": 2, "embed_dim": 16, "num_heads": [1, 2, 4, 8], "window_size": 4}, IMAGE,
             r"swin\.encoder\.layers\.\d+\.blocks\.\d+", 12),
    "convnext": ("ConvNextForImageClassification", {"hidden_sizes": [8, 16, 32, 64]}, IMAGE,
                 r"convnext\.encoder\.stages\.\d+\.layers\.\d+", 18),
    "resnet50": ("ResNetForImageClassification", {"embedding_size": 8, "hidden_sizes": [32, 64, 128, 256]}, IMAGE,
                 r"resnet\.encoder\.stages\.\d+\.layers\.\d+", 16),
    "resnet18": ("ResNetForImageClassification",
                 {"embedding_size": 8, "hidden_sizes": [8, 16, 32, 64], "depths": [2, 2, 2, 2], "layer_type": "basic"},
                 IMAGE, r"resnet\.encoder\.stages\.\d+\.layers\.\d+", 8),
    "segformer": ("SegformerForSemanticSegmentation",
                  {"hidden_sizes": [8, 16, 32, 64], "num_attention_heads": [1, 2, 4, 8]}, IMAGE,
                  r"segformer\.(stages|encoder\.block)\.\d+(\.layers|\.blocks)?\.\d+", 8),
    "wav2vec2": ("Wav2Vec2Model",
                 small(num_hidden_layers=6, conv_dim=[16] * 7, num_conv_pos_embeddings=16,
                       num_conv_pos_embedding_groups=4), {"input_values": (2, 3200)},
                 r"encoder\.layers\.\d+|feature_extractor\.conv_layers\.\d+", 13),
    "clip": ("CLIPModel", {"text_config": small(num_hidden_layers=4, eos_token_id=2),
                           "vision_config": small(num_hidden_layers=6, image_size=64)}, TOKENS | IMAGE,
             r"(text|vision)_model\.encoder\.layers\.\d+", 10),
    "mamba": ("MambaForCausalLM", {"hidden_size": 32, "num_hidden_layers": 8, "vocab_size": 96, "state_size": 4},
              TOKENS, r"backbone\.layers\.\d+", 8),
    "funnel": ("FunnelModel",
               {"d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64, "vocab_size": 96, "block_sizes": [2, 2, 2]},
               TOKENS, r"encoder\.blocks\.\d+\.\d+|decoder\.layers\.\d+", 8),
    "deberta": ("DebertaV2ForMaskedLM", small(num_hidden_layers=8, relative_attention=True), TOKENS,
                r"deberta\.encoder\.layer\.\d+", 8),
    "xlnet": ("XLNetModel", {"d_model": 32, "n_head": 4, "d_inner": 64, "n_layer": 8, "vocab_size": 96}, TOKENS,
              r"layer\.\d+", 8),
    "focalnet": ("FocalNetModel", {"image_size": 64, "embed_dim": 16}, IMAGE,
                 r"encoder\.stages\.\d+\.layers\.\d+", 12),
    "mobilenet_v2": ("MobileNetV2ForImageClassification", {"depth_multiplier": 0.35}, IMAGE,
                     r"mobilenet_v2\.layer\.\d+", 16),
}  # fmt: skip
DIFFUSERS = {
    "unet_conditional": ("UNet2DConditionModel", {"block_out_channels": (16, 32, 64, 64), **UNET},
                         LATENT | {"encoder_hidden_states": (2, 7, 32)}, r"(down_blocks|up_blocks)\.\d+|mid_block", 9),
    "dit": ("DiTTransformer2DModel", {"num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 8,
                                      "sample_size": 16},
            {"hidden_states": (2, 4, 16, 16), "timestep": (2,), "class_labels": (2,)}, r"transformer_blocks\.\d+", 8),
    "flux": ("FluxTransformer2DModel",
             {"in_channels": 16, "num_layers": 3, "num_single_layers": 6, "attention_head_dim": 8,
              "num_attention_heads": 4, "joint_attention_dim": 32, "pooled_projection_dim": 32,
              "axes_dims_rope": (2, 2, 4)},
             {"hidden_states": (2, 16, 16), "encoder_hidden_states": (2, 7, 32), "pooled_projections": (2, 32),
              "timestep": (2,), "img_ids": (16, 3), "txt_ids": (7, 3)},
             r"(single_)?transformer_blocks\.\d+", 9),
    "vae": ("AutoencoderKL",
            {"block_out_channels": (16, 32, 64), "down_block_types": ("DownEncoderBlock2D",) * 3,
             "up_block_types": ("UpDecoderBlock2D",) * 3, "norm_num_groups": 8, "layers_per_block": 2},
            {"sample": (2, 3, 32, 32)}, r"(encoder|decoder)\.(down|up)_blocks\.\d+\.resnets\.\d+", 15),
}  # fmt: skip
WHOLE_NUMBERS = ("input_ids", "decoder_input_ids", "class_labels")


def library_model(library: str, name: str, configuration: dict) -> nn.Module:
    models = pytest.importorskip(library, reason=f"needs {library}: the extra 'models'")
    with torch.device("meta"):
        if library == "diffusers":
            return getattr(models, name)(**configuration)
        kind = getattr(models, name)
        return kind(kind.config_class(**configuration))


@pytest.mark.parametrize(
    ("library", "name"),
    [*zip(itertools.repeat("transformers"), TRANSFORMERS), *zip(itertools.repeat("diffusers"), DIFFUSERS)],
    ids=lambda value: value,
)
def test_expert__models_of_libraries__blocks_whole_in_order_on_all_devices(library, name):
    kind, configuration, shapes, pattern, count = (TRANSFORMERS | DIFFUSERS)[name]
    module = library_model(library, kind, configuration)
    inputs = {
        key: torch.zeros(shape, dtype=torch.long if key in WHOLE_NUMBERS else torch.float32, device="meta")
        for key, shape in shapes.items()
    }
    graph = capture(module, inputs, train=False)
    problem = PlacementProblem(graph, "v100x4")
    decision = next(expert(problem))

    matches = {path: re.match(rf"({pattern})(\.|$)", path) for path in graph.modules}
    block_of = {path: match.group(1) for path, match in matches.items() if match}
    devices: dict[str, set[int]] = {}
    first: dict[str, int] = {}
    computed = graph.bytes_written > 0
    for op in np.flatnonzero(computed).tolist():
        block = block_of.get(graph.modules[graph.module[op]])
        if block is not None:
            group = problem.group_of_task[problem.simulator.tasks.task_of_op[op]]
            devices.setdefault(block, set()).add(int(decision[group]))
            first.setdefault(block, op)
    assert len(devices) == count, sorted(devices)
    assert [block for block, found in devices.items() if len(found) > 1] == []
    in_order = [next(iter(devices[block])) for block in sorted(first, key=first.__getitem__)]
    assert in_order == sorted(in_order)
    assert set(decision.tolist()) == {0, 1, 2, 3}
    work_s = make_group_graph(problem).work_s[0]
    busy_s = np.bincount(decision, work_s, 4)
    largest_s = max(work_s[decision == device].sum() / (in_order.count(device) or 1) for device in range(4))
    assert busy_s.max() - busy_s.mean() <= 1.01 * largest_s  # no cut of whole blocks is nearer than a block
    assert busy_s.max() < 1.35 * busy_s.mean()
