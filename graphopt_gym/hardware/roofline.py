"""The formulas of the fitted roofline: how long a kernel computes, and at what rate it moves bytes.

Every function is vectorised over kernels and takes the fitted parameters of one architecture (a table of plain
numbers, see ``envs_data/cost_model``) with the datasheet's numbers of the device. Nothing here knows a graph.

**Matrix products** (:func:`gemm_seconds`). A product of ``batch`` matrices [m, k] x [k, n] is cut into tiles of
``tm x tn`` outputs, and each into ``s`` slices of k. A tile costs ``2 tm tn (k / s + k_fixed)`` operations, with k
rounded up to ``k_step``. The tiles run in waves over the compute units, where ``fill`` more tiles than one are needed
to fill a unit; the share ``quantised`` of a product pays whole waves. The library is taken to choose the best tile
shape and split, so the time is the minimum over them. Two slowdowns that the measurements show are added: long
kernels lose the gain that short ones have (clocks fall under load), and products over a very long k lose more (rows of
both operands lie far apart; on a P100 a product with k = 60,000 runs at half the rate of one with k = 6,000).

**Clocks under a board's power limit** (:func:`power_share`). A board that may draw less than its chip's full rate
takes runs at the share that it may draw.

**Fused attention** (:func:`attention_seconds`). A share of the peak by pass and size of a head, less on short
sequences.

**Convolutions** (:func:`conv_seconds`). The minimum over three algorithms: implicit matrix product, and for 3x3
kernels with stride 1 the Winograd algorithms F(2x2) in one kernel and F(4x4) through memory (Lavin and Gray 2016),
which do 16/36 and 36/144 of the multiplications.

**Bytes** (:func:`stream_efficiency`, :func:`row_efficiency`). A share of the memory bandwidth by kind of kernel; for
softmax and normalisation by the length of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.hardware.functions import log, power

if TYPE_CHECKING:
    from graphopt_gym.hardware.cluster import Device

TILES = ((128, 128), (128, 64), (64, 128), (64, 64), (128, 32), (32, 128), (64, 32), (32, 64), (32, 32))
SPLITS = (1, 2, 4, 8, 16)
CONV_TILES = ((128, 128), (128, 64), (64, 128), (64, 64), (128, 32), (32, 128), (32, 32))
CONV_SPLITS = (1, 2, 4, 8)
WINOGRAD_TILES = ((128, 128), (64, 128), (128, 64), (64, 64), (32, 32))
FUSED_WINOGRAD_TILES = ((32, 32), (64, 32), (128, 64))
SHORTEST_SLICE = 64  # a slice of k has at least so many
SOFTMAX_KNOTS = (64, 512, 1024, 1025, 2048, 4096)  # row lengths; a row of up to 1024 stays in one warp's registers
NORM_KNOTS = (256, 512, 1024, 1536, 2048, 3072, 4096)

# Joules that a FLOP takes on a board whose power lets its chip run at full rate: board power over float32 peak.
FULL_POWER_J_PER_FLOP = {
    "pascal": 250 / 9.3e12,  # P100 PCIe
    "volta": 250 / 14.0e12,  # V100 PCIe
    "turing": 280 / 16.3e12,  # TITAN RTX
    "ampere": 250 / 19.5e12,  # A100 PCIe, 40 GB
    "ampere_ga10x": 350 / 35.6e12,  # GeForce RTX 3090
    "ada": 450 / 82.6e12,  # GeForce RTX 4090
    "hopper": 700 / 66.9e12,  # H100 SXM
}

Parameters = Mapping[str, Any]


def power_share(device: Device) -> float:
    """The share of its peak that a board may run at for long under its power limit, at most 1.

    Power goes with the clock and the square of the voltage, which falls with the clock, less what does not change with
    either; taken together as the clock to the power of 1.5. So the share is what the board may draw over what the
    chip would take at its full rate (the energy a FLOP takes on the boards of :data:`FULL_POWER_J_PER_FLOP`), to the
    power of 2/3: 0.63 for the T4. The rates are from datasheets; the exponent is chosen, with the T4 in view. 1 where
    the board's power or the architecture is not known. It holds for all formats alike.
    """
    joule = FULL_POWER_J_PER_FLOP.get(device.architecture)
    if not device.board_watts or joule is None:
        return 1.0
    return float(min(1.0, device.board_watts / (device.peak_flops["float32"] * joule)) ** (2 / 3))


def power_left(p: Parameters, device: Device) -> float:
    """How much of the peak that parameters were fitted against the board's power leaves on a device."""
    return power_share(device) / p.get("power_share", 1.0)


def within_power(layout: Parameters, p: Parameters, device: Device) -> Parameters:
    """Parameters of products for a device that its power holds back less than the one they were fitted on.

    What short kernels gain there (clocks fall only after a while) is not gained twice.
    """
    more = power_left(p, device)
    if more <= 1 or not layout["long_gain"]:
        return layout
    return {**layout, "long_gain": max((1 + layout["long_gain"]) / more - 1, 0.0)}


def gemm_seconds(
    p: Parameters,
    units: float,
    peak_flops: float | np.ndarray,
    bytes_per_s: float,
    batch: np.ndarray,
    m: np.ndarray,
    n: np.ndarray,
    k: np.ndarray,
) -> np.ndarray:
    """float64 [X]: seconds of compute of X matrix products.

    Args:
        p: ``tiles`` [9] efficiency by :data:`TILES`, ``k_fixed``, ``k_step``, ``fill``, ``quantised``, ``split_s``,
            ``long_gain``, ``long_s``, ``deep_loss``, ``deep_k``, ``deep_power``.
        units: multiprocessors.
        peak_flops: FLOP/s, one for all or one each.
        bytes_per_s: the datasheet's memory bandwidth (partial sums of split products go through it).
        batch, m, n, k: float64 [X].
    """
    k_padded = np.ceil(k / p["k_step"]) * p["k_step"]
    partial_s = 4 * batch * m * n / (0.8 * bytes_per_s)
    best = np.full(np.shape(m), np.inf)
    for (tm, tn), efficiency in zip(TILES, p["tiles"], strict=True):
        tiles = batch * np.ceil(m / tm) * np.ceil(n / tn) / units
        unit_flops = 2 * tm * tn * units / efficiency / peak_flops
        for split in SPLITS:
            waves = tiles * split
            waves = p["quantised"] * np.ceil(waves) + (1 - p["quantised"]) * waves
            seconds = np.maximum(waves, 1 + p["fill"]) * unit_flops * (k_padded / split + p["k_fixed"])
            if split > 1:
                seconds = seconds + p["split_s"] + split * partial_s
                seconds = np.where(k_padded >= split * SHORTEST_SLICE, seconds, np.inf)
            best = np.minimum(best, seconds)
    best = best / (1 + p["long_gain"] / (1 + best / p["long_s"]))
    if p["deep_loss"] > 0:
        best = best * (1 + p["deep_loss"] / (1 + power(k / p["deep_k"], -p["deep_power"])))
    return best


def tensor_core_seconds(
    q: Parameters,
    units: float,
    peak_flops: float,
    bytes_per_s: float,
    item_bytes: float,
    batch: np.ndarray,
    m: np.ndarray,
    n: np.ndarray,
    k: np.ndarray,
) -> np.ndarray:
    """float64 [X]: seconds of X matrix products on tensor cores.

    As :func:`gemm_seconds` with fewer parameters: a tile of half the size reaches ``small`` of the rate, and what a
    wave takes beside its multiplications is a time, ``wave_s``, so that it carries over to devices of other rates.

    Args:
        q: ``largest`` (efficiency of a 128 x 128 tile), ``small``, ``wave_s``, ``fill``, ``quantised``, ``split_s``,
            ``left_bytes``, ``right_bytes`` (shares of bandwidth at which the operands pass through memory beside the
            product, as where float32 operands are laid out anew first).
    """
    k_padded = np.ceil(k / SHORTEST_SLICE) * SHORTEST_SLICE
    partial_s = 4 * batch * m * n / (0.8 * bytes_per_s)
    best = np.full(np.shape(m), np.inf)
    for tm, tn in TILES:
        efficiency = q["largest"] * q["small"] ** (math.log2(TILES[0][0] * TILES[0][1] / (tm * tn)) / 2)
        tiles = batch * np.ceil(m / tm) * np.ceil(n / tn) / units
        unit_flops = 2 * tm * tn * units / efficiency / peak_flops
        for split in SPLITS:
            waves = tiles * split
            waves = q["quantised"] * np.ceil(waves) + (1 - q["quantised"]) * waves
            seconds = np.maximum(waves, 1 + q["fill"]) * (unit_flops * k_padded / split + q["wave_s"])
            if split > 1:
                seconds = seconds + q["split_s"] + split * partial_s
                seconds = np.where(k_padded >= split * SHORTEST_SLICE, seconds, np.inf)
            best = np.minimum(best, seconds)
    return best + item_bytes * batch * (m * k / q["left_bytes"] + k * n / q["right_bytes"]) / bytes_per_s


def attention_seconds(
    p: Parameters,
    architecture: str,
    flops: np.ndarray,
    peak_flops: np.ndarray,
    length: np.ndarray,
    head: np.ndarray,
    backward: np.ndarray,
    flash: np.ndarray,
    cudnn: np.ndarray,
) -> np.ndarray:
    """float64 [X]: seconds of compute of X fused attentions.

    ``flops / (peak x share x head / (head + head_half) / (1 + length_half / length))``

    Args:
        p: ``flash`` and ``cudnn``, each with ``forward``, ``backward`` (shares of the peak for long sequences and
            large heads), ``head_half`` and ``length_half``; ``flash_elsewhere``, what ``flash`` gains on
            architectures whose tensor cores it uses in full; ``efficient``, a share of what flash reaches.
        flops: of the values computed.
        length: of the queries.
        head: size of a head.
        backward, flash, cudnn: bool; neither flash nor cuDNN is the memory-efficient kernel.
    """
    seconds = np.zeros(np.shape(flops))
    for name, chosen in (("flash", ~cudnn), ("cudnn", cudnn)):
        q = p[name]
        share = np.where(backward, q["backward"], q["forward"]) * head / (head + q["head_half"])
        if name == "flash" and architecture != "hopper":
            share = np.minimum(share * p["flash_elsewhere"], 1.0)
        share = share / (1 + q["length_half"] / np.maximum(length, 1))
        share = np.where(flash, share, share * p["efficient"])
        seconds = np.where(chosen, flops / (peak_flops * share), seconds)
    return seconds


def conv_seconds(
    p: Parameters,
    units: float,
    peak_flops: float | np.ndarray,
    bytes_per_s: float,
    images: np.ndarray,
    height: np.ndarray,
    width: np.ndarray,
    out_channels: np.ndarray,
    k: np.ndarray,
    winograd: np.ndarray,
    item_bytes: float | np.ndarray = 4,
) -> np.ndarray:
    """float64 [X]: seconds of compute of X convolutions, with what they move between their own kernels.

    Args:
        p: ``tiles`` [7] by :data:`CONV_TILES`, ``k_fixed``, ``fill``, ``in_bytes``, ``out_bytes``, ``weight_bytes``
            (shares of bandwidth at which the implicit product's operands, the left one with m k elements, pass through
            memory beside the product); ``fused``, ``fused_fill``,
            ``fused_k``, ``fused_weight_bytes`` of F(2x2); ``wide`` [5] by :data:`WINOGRAD_TILES`, ``wide_fill``,
            ``wide_k``, ``wide_in_bytes``, ``wide_out_bytes``, ``wide_weight_bytes`` of F(4x4).
        height, width: of the output.
        k: multiplications an output value takes: input channels a group x kernel size.
        winograd: bool, a 3x3 kernel with stride 1.
        item_bytes: of an element, one for all or one each.
    """
    m = images * height * width
    pass_s = np.broadcast_to(item_bytes, np.shape(m)) / bytes_per_s
    extra = pass_s * (m * k / p["in_bytes"] + m * out_channels / p["out_bytes"] + k * out_channels / p["weight_bytes"])
    best = np.full(np.shape(m), np.inf)
    for (tm, tn), efficiency in zip(CONV_TILES, p["tiles"], strict=True):
        tiles = np.ceil(m / tm) * np.ceil(out_channels / tn) / units
        unit_flops = 2 * tm * tn * units / efficiency / peak_flops
        for split in CONV_SPLITS:
            seconds = np.maximum(tiles * split, 1 + p["fill"]) * unit_flops * (k / split + p["k_fixed"]) + extra
            if split > 1:
                seconds = seconds + split * m * out_channels * pass_s / 0.8
            best = np.minimum(best, seconds)
    if not np.any(winograd):
        return best

    channels = np.ceil(k / 9 / 8) * 8
    weights = k / 9 * out_channels
    squares = images * np.ceil(height / 2) * np.ceil(width / 2)
    for ts, tc in FUSED_WINOGRAD_TILES:
        tiles = np.ceil(squares / ts) * np.ceil(out_channels / tc) / units
        unit_flops = 2 * 16 * ts * tc * units / p["fused"] / peak_flops
        seconds = np.maximum(tiles, 1 + p["fused_fill"]) * unit_flops * (channels + p["fused_k"])
        seconds = seconds + pass_s * (16 + 9) * weights / p["fused_weight_bytes"]
        best = np.where(winograd, np.minimum(best, seconds), best)
    squares = images * np.ceil(height / 4) * np.ceil(width / 4)
    moved = pass_s * (
        72 * squares * (k / 9) / p["wide_in_bytes"]
        + 72 * squares * out_channels / p["wide_out_bytes"]
        + 72 * weights / p["wide_weight_bytes"]
    )
    for (ts, tc), efficiency in zip(WINOGRAD_TILES, p["wide"], strict=True):
        tiles = 36 * np.ceil(squares / ts) * np.ceil(out_channels / tc) / units
        unit_flops = 2 * ts * tc * units / efficiency / peak_flops
        seconds = np.maximum(tiles, 1 + p["wide_fill"]) * unit_flops * (channels + p["wide_k"]) + moved
        best = np.where(winograd, np.minimum(best, seconds), best)
    return best


def stream_efficiency(p: Parameters, bytes_read: np.ndarray, bytes_written: np.ndarray) -> np.ndarray:
    """float64 [X]: share of the memory bandwidth of kernels that stream through memory once.

    ``p``: ``one_input`` where as much is read as written, ``two_inputs`` where twice as much; in between by the ratio.
    """
    more = np.clip(bytes_read / np.maximum(bytes_written, 1) - 1, 0.0, 1.0)
    return p["one_input"] + (p["two_inputs"] - p["one_input"]) * more


def row_efficiency(knots: tuple[int, ...], efficiencies: Any, length: np.ndarray) -> np.ndarray:
    """float64 [X]: share of the memory bandwidth of kernels that reduce rows, by the rows' length.

    Between knots linear in the logarithm of the length; constant outside.
    """
    return np.interp(log(np.maximum(length, 1)), log(knots), efficiencies)
