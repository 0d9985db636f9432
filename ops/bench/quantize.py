"""Writes a Llama again with quantized weights, in the layouts that AutoAWQ, GPTQ and LLM Compressor write.

Round-to-nearest, no calibration: the point is the file format and that an engine's kernels read it; real recipes lose
less. Each writer returns the folder; `dequantized` is the same model in plain weights, what any engine must agree with.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

GROUP = 32  # input channels that share a scale
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # in which AutoAWQ puts eight 4-bit values into an int32


def write_awq(source: Path, folder: Path) -> Path:
    """4 bits, asymmetric, groups of 32 input channels; packed along the output."""

    def quantize(name: str, weight: Any) -> tuple[dict[str, Any], Any]:
        values, zeros, scales = _four_bits(weight)
        packed = {
            f"{name}.qweight": _packed(values, 1, AWQ_ORDER),
            f"{name}.qzeros": _packed(zeros, 1, AWQ_ORDER),
            f"{name}.scales": scales.half(),
        }
        return packed, _plain(values, zeros, scales)

    settings = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
    return _write(source, folder, settings, quantize)


def write_gptq(source: Path, folder: Path) -> Path:
    """4 bits, symmetric, groups of 32 input channels; packed along the input, zero points stored one too low."""
    import torch

    def quantize(name: str, weight: Any) -> tuple[dict[str, Any], Any]:
        values, zeros, scales = _four_bits(weight, symmetric=True)
        packed = {
            f"{name}.qweight": _packed(values, 0),
            f"{name}.qzeros": _packed(zeros - 1, 1),
            f"{name}.scales": scales.half(),
            f"{name}.g_idx": torch.arange(len(values), dtype=torch.int32) // GROUP,
        }
        return packed, _plain(values, zeros, scales)

    settings = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False}
    return _write(source, folder, settings, quantize)


def write_int8(source: Path, folder: Path) -> Path:
    """8-bit weights per output channel and 8-bit activations per token, as SmoothQuant recipes leave them."""
    import torch

    def quantize(name: str, weight: Any) -> tuple[dict[str, Any], Any]:
        scales = weight.abs().amax(1, keepdim=True) / 127
        values = (weight / scales).round().clamp(-127, 127)
        return {f"{name}.weight": values.to(torch.int8), f"{name}.weight_scale": scales}, values * scales

    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    activations = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    settings = {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": {"group_0": group}}
    return _write(source, folder, {**settings, "ignore": ["lm_head"]}, quantize)


def write_fp8_blocks(source: Path, folder: Path) -> Path:
    """8-bit floating point weights with one scale for each block of 128 x 128."""
    import torch

    def quantize(name: str, weight: Any) -> tuple[dict[str, Any], Any]:
        rows, columns = weight.shape
        blocks = weight.reshape(rows // 128, 128, columns // 128, 128)
        scales = blocks.abs().amax((1, 3)) / torch.finfo(torch.float8_e4m3fn).max
        values = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
        plain = (values.float() * scales[:, None, :, None]).reshape(rows, columns)
        return {f"{name}.weight": values.reshape(rows, columns), f"{name}.weight_scale_inv": scales}, plain

    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    return _write(source, folder, settings, quantize)


WRITERS = {"awq": write_awq, "gptq": write_gptq, "int8": write_int8, "fp8-blocks": write_fp8_blocks}


def dequantized(folder: Path) -> Path:
    """The same weights as the quantized ones in `folder`, in plain bfloat16."""
    return folder.with_name(folder.name + "-plain")


Quantize = Callable[[str, Any], tuple[dict[str, Any], Any]]


def _write(source: Path, folder: Path, settings: dict[str, Any], quantize: Quantize) -> Path:
    import torch
    from safetensors.torch import load_file, save_file

    quantized: dict[str, Any] = {}
    plain: dict[str, Any] = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            packed, restored = quantize(name.removesuffix(".weight"), tensor.float())
            quantized |= packed
            plain[name] = restored.to(torch.bfloat16)
        else:
            quantized[name] = plain[name] = tensor
    config = json.loads((source / "config.json").read_text())
    for target, tensors, more in (
        (folder, quantized, {"quantization_config": settings}),
        (dequantized(folder), plain, {}),
    ):
        shutil.copytree(source, target)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target / "model.safetensors")
        (target / "config.json").write_text(json.dumps(config | more))
    return folder


def _four_bits(weight: Any, *, symmetric: bool = False) -> tuple[Any, Any, Any]:
    # (out, in) to values (in, out), zero points and scales (groups, out)
    import torch

    groups = weight.T.reshape(-1, GROUP, weight.shape[0])
    if symmetric:
        scales = (groups.abs().amax(1) / 7).half().float()
        zeros = torch.full_like(scales, 8)
    else:
        low, high = groups.amin(1).clamp(max=0), groups.amax(1).clamp(min=0)
        scales = ((high - low) / 15).half().float()
        zeros = (-low / scales).round().clamp(0, 15)
    values = (groups / scales[:, None] + zeros[:, None]).round().clamp(0, 15)
    return values.reshape(weight.T.shape).int(), zeros.int(), scales


def _plain(values: Any, zeros: Any, scales: Any) -> Any:
    restored = (values - zeros.repeat_interleave(GROUP, 0)) * scales.repeat_interleave(GROUP, 0)
    return restored.T


def _packed(values: Any, dim: int, order: tuple[int, ...] = tuple(range(8))) -> Any:
    import torch

    moved = values.movedim(dim, -1)
    eights = moved.reshape(*moved.shape[:-1], -1, 8)[..., list(order)].long()
    whole = (eights << (4 * torch.arange(8))).sum(-1)
    return torch.where(whole >= 2**31, whole - 2**32, whole).int().movedim(-1, dim)
