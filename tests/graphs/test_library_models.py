"""Models of Hugging Face's transformers and diffusers, small and of true structure, captured as a GPU runs them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from graphopt_gym.graphs.capture import CaptureWarning, capture
from graphopt_gym.graphs.graph import DTYPES, OP_CLASSES, PHASES

torch = pytest.importorskip("torch")
reason = "needs the libraries of pip install 'graphopt-gym[models]'"
transformers = pytest.importorskip("transformers", reason=reason)
diffusers = pytest.importorskip("diffusers", reason=reason)

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning", "ignore:.*:UserWarning"
)

Sample = tuple[Any, dict[str, Any], Callable[[Any], Any]]  # module, inputs, loss
TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 100}
SIZES = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "vocab_size": 100,
         "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}  # fmt: skip
VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
SPECIAL = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}


def of(name: str, **config: Any) -> Any:
    """A model of transformers with the configuration that its name says."""
    model = getattr(transformers, name)
    torch.manual_seed(0)
    return model(model.config_class(**config))


def lm(name: str, **config: Any) -> Sample:
    tokens = torch.arange(32).reshape(2, 16) % 90 + 5
    return of(name, **config), {"input_ids": tokens, "labels": tokens}, lambda out: out.loss


def image(name: str, size: int = 32, **config: Any) -> Sample:
    inputs = {"pixel_values": torch.randn(2, 3, size, size), "labels": torch.zeros(2, dtype=torch.long)}
    return of(name, **config), inputs, lambda out: out.loss


def whisper() -> Sample:
    module, inputs, loss = lm("WhisperForConditionalGeneration", **SIZES, **SPECIAL, decoder_start_token_id=3,
                              max_source_positions=50, num_mel_bins=20)  # fmt: skip
    return module, {"input_features": torch.randn(2, 20, 100), "labels": inputs["labels"]}, loss


def wav2vec2() -> Sample:
    module = of("Wav2Vec2ForCTC", **TEXT | {"vocab_size": 30}, conv_dim=(16,) * 7, num_conv_pos_embeddings=16,
                num_conv_pos_embedding_groups=4, mask_time_length=2, layerdrop=0.0)  # fmt: skip
    mask = torch.ones(2, 6000, dtype=torch.long)
    mask[1, 4000:] = 0
    inputs = {
        "input_values": torch.randn(2, 6000),
        "attention_mask": mask,
        "labels": torch.ones(2, 5, dtype=torch.long),
    }
    return module, inputs, lambda out: out.loss


def detr() -> Sample:
    backbone = transformers.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic",
                                         out_features=["stage2"])  # fmt: skip
    sizes = {key: value for key, value in SIZES.items() if key != "vocab_size"}
    module = of("DetrForObjectDetection", **sizes, backbone_config=backbone, use_timm_backbone=False, backbone=None,
                use_pretrained_backbone=False, num_queries=10)  # fmt: skip
    labels = [{"class_labels": torch.tensor([1, 2]), "boxes": torch.rand(2, 4)}] * 2
    mask = torch.ones(2, 64, 64, dtype=torch.long)
    return (
        module,
        {"pixel_values": torch.randn(2, 3, 64, 64), "pixel_mask": mask, "labels": labels},
        lambda out: out.loss,
    )


def clip() -> Sample:
    module = of("CLIPModel", text_config=TEXT | SPECIAL, vision_config=VISION | {"image_size": 32, "patch_size": 8},
                projection_dim=16)  # fmt: skip
    inputs = {
        "input_ids": torch.arange(32).reshape(2, 16),
        "pixel_values": torch.randn(2, 3, 32, 32),
        "return_loss": True,
    }
    return module, inputs, lambda out: out.loss


def checkpointed(sample: Sample, reentrant: bool) -> Sample:
    sample[0].gradient_checkpointing_enable({"use_reentrant": reentrant})
    return sample


def eager_experts(sample: Sample) -> Sample:
    sample[0].set_experts_implementation("eager")
    return sample


def half(sample: Sample) -> Sample:
    return sample[0].bfloat16(), sample[1], sample[2]


def unet() -> Sample:
    module = diffusers.UNet2DConditionModel(
        sample_size=16, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=16, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
    )  # fmt: skip
    inputs = {"sample": torch.randn(2, 4, 16, 16), "timestep": torch.tensor([3, 4]),
              "encoder_hidden_states": torch.randn(2, 7, 16)}  # fmt: skip
    return module, inputs, lambda out: out.sample.square().mean()


def flux() -> Sample:
    module = diffusers.FluxTransformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    inputs = {"hidden_states": torch.randn(1, 16, 4), "encoder_hidden_states": torch.randn(1, 8, 32),
              "pooled_projections": torch.randn(1, 32), "timestep": torch.tensor([1.0]), "img_ids": torch.zeros(16, 3),
              "txt_ids": torch.zeros(8, 3)}  # fmt: skip
    return module, inputs, lambda out: out.sample.square().mean()


def autoencoder() -> Sample:
    module = diffusers.AutoencoderKL(block_out_channels=(16, 32), down_block_types=("DownEncoderBlock2D",) * 2,
                                     up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4)  # fmt: skip
    return module, {"sample": torch.randn(1, 3, 32, 32)}, lambda out: out.sample.square().mean()


LLAMA = {**TEXT, "num_key_value_heads": 2}
MIXTRAL = {**LLAMA, "num_local_experts": 4}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 100}
EFFICIENT, FLASH = "_scaled_dot_product_efficient_attention", "_scaled_dot_product_flash_attention"
# name -> (what makes it, an operator that its forward pass has on a GPU, and how many)
MODELS: dict[str, tuple[Callable[[], Sample], str, int]] = {
    "gpt2": (lambda: lm("GPT2LMHeadModel", n_embd=32, n_layer=2, n_head=4, vocab_size=100), EFFICIENT, 2),
    "bert": (lambda: lm("BertForMaskedLM", **TEXT), EFFICIENT, 2),
    "deberta": (
        lambda: lm("DebertaV2ForMaskedLM", **TEXT, relative_attention=True, pos_att_type=["p2c", "c2p"]),
        "_softmax", 2,
    ),
    "llama_bf16": (lambda: half(lm("LlamaForCausalLM", **LLAMA)), FLASH, 2),
    "llama_checkpointed": (lambda: checkpointed(lm("LlamaForCausalLM", **TEXT), False), EFFICIENT, 2),
    "gpt2_checkpointed": (
        lambda: checkpointed(lm("GPT2LMHeadModel", n_embd=32, n_layer=2, n_head=4, vocab_size=100), True), EFFICIENT, 2,
    ),
    "mixtral": (lambda: lm("MixtralForCausalLM", **MIXTRAL), "_grouped_mm", 4),
    "mixtral_loops": (lambda: eager_experts(lm("MixtralForCausalLM", **MIXTRAL)), "topk", 2),
    "opt": (
        lambda: lm("OPTForCausalLM", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64,
                   vocab_size=100, word_embed_proj_dim=32), EFFICIENT, 2,
    ),
    "mamba": (
        lambda: lm("MambaForCausalLM", hidden_size=32, num_hidden_layers=2, vocab_size=100, state_size=8),
        "convolution", 2,
    ),
    "t5": (lambda: lm("T5ForConditionalGeneration", **T5, decoder_start_token_id=0, pad_token_id=0), EFFICIENT, 6),
    "bart": (lambda: lm("BartForConditionalGeneration", **SIZES, **SPECIAL), EFFICIENT, 6),
    "whisper": (whisper, EFFICIENT, 6),
    "wav2vec2": (wav2vec2, "_ctc_loss", 1),
    "vit": (lambda: image("ViTForImageClassification", **VISION, image_size=32, patch_size=8), EFFICIENT, 2),
    "swin": (
        lambda: image("SwinForImageClassification", 64, image_size=64, embed_dim=16, depths=[1, 1], num_heads=[2, 2],
                      window_size=4), EFFICIENT, 2,
    ),
    "resnet": (
        lambda: image("ResNetForImageClassification", 64, embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1],
                      layer_type="basic"), "native_batch_norm", 6,
    ),
    "convnext": (
        lambda: image("ConvNextForImageClassification", 64, hidden_sizes=[16, 32], depths=[1, 1], num_stages=2),
        "convolution", 4,
    ),
    "detr": (detr, EFFICIENT, 6),
    "clip": (clip, EFFICIENT, 4),
    "unet": (unet, EFFICIENT, 8),
    "flux": (flux, EFFICIENT, 2),
    "autoencoder": (autoencoder, EFFICIENT, 2),
}  # fmt: skip
COUNTED = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")


def by_torch(sample: Sample) -> tuple[Counter[str], set[str]]:
    """FLOPs by operator of the step as torch really runs it here, counted by torch; what parameters get a gradient."""
    from torch.utils.flop_counter import FlopCounterMode

    module, inputs, loss = sample
    torch.manual_seed(1)
    np.random.seed(1)
    with FlopCounterMode(display=False) as counter:
        loss(module(**inputs)).backward()
    found = counter.get_flop_counts()["Global"]
    names = {name for name, parameter in module.named_parameters() if parameter.grad is not None}
    module.zero_grad()
    return Counter({str(op).split(".")[-1]: flops for op, flops in found.items()}), names


@pytest.mark.parametrize("name", MODELS)
def test_library_model__is_captured_as_it_runs(name):
    make, kind, count = MODELS[name]
    module, inputs, loss = sample = make()
    module.train()
    trainable = {key for key, parameter in module.named_parameters() if parameter.requires_grad}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CaptureWarning)
        graph = capture(module, inputs, loss=loss, name=name)
        real = module if "bf16" not in name else module.float()
        plain = capture(real, inputs, loss=loss, target="cpu")
    flops, with_gradient = by_torch((real, inputs, loss))
    assert sample[0] is module

    assert "unmodelled_ops" not in graph.metadata
    held = {id(p): p.numel() * p.itemsize for p in make()[0].parameters()}
    assert graph.param_bytes.sum() == sum(held.values())
    kinds = np.array(graph.kinds)[graph.kind]
    forward = np.array(PHASES)[graph.phase] == "forward"
    assert (kinds[forward] == kind).sum() == count
    # a parameter that gets a gradient is updated, and no other
    missing = graph.metadata.get("parameters_without_gradient", {"count": 0})["count"]
    assert (kinds == "adam").sum() == len(with_gradient) == len(trainable) - missing
    # on the CPU: torch's own count of what it ran (attention is not counted there)
    found = np.array(plain.kinds)[plain.kind]
    counted = {kind: int(plain.flops[found == kind].sum()) for kind in COUNTED}
    assert counted == {kind: flops[kind] for kind in COUNTED}


def test_library_model__autocast_reaches_attention():
    class Autocast(torch.nn.Module):
        def __init__(self, inner) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, **inputs):
            with torch.autocast("cuda", torch.bfloat16):
                return self.inner(**inputs)

    module, inputs, loss = lm("LlamaForCausalLM", **LLAMA)
    graph = capture(Autocast(module), inputs, loss=loss)
    products = np.isin(np.array(OP_CLASSES)[graph.op_class], ["matmul"])
    kinds = np.array(graph.kinds)[graph.kind]
    assert (kinds == FLASH).sum() == 2
    wide = {kinds[op] for op in np.flatnonzero(products) if DTYPES[graph.dtype[op]] != "bfloat16"}
    assert wide <= {"bmm"}  # rotary frequencies, which the model computes in float32


def test_library_model__at_full_size_without_its_memory():
    config = transformers.LlamaConfig()  # 7B
    with torch.device("meta"):
        module = transformers.LlamaForCausalLM(config).bfloat16()
    module.gradient_checkpointing_enable()
    tokens = torch.zeros(1, 512, dtype=torch.long)
    graph = capture(module, {"input_ids": tokens, "labels": tokens}, loss=lambda out: out.loss)
    assert graph.param_bytes.sum() == 2 * sum(p.numel() for p in module.parameters()) > 13e9
    assert (np.array(graph.kinds)[graph.kind] == FLASH).sum() == 2 * 32  # once more in the backward pass
    assert "constant" not in {graph.kinds[k] for k in graph.kind[graph.output_bytes > 2**20]}
