"""Number formats of GGUF files, block by block, against the layout that llama.cpp documents (ggml-common.h)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter

from forward_influence.models.gguf.header import read_header


def half(data: bytes) -> float:
    return float(struct.unpack("<e", data)[0])


def q8_0(block: bytes) -> list[float]:
    """32 values: a scale, signed bytes."""
    return [half(block[:2]) * struct.unpack("b", block[2 + i : 3 + i])[0] for i in range(32)]


def q5_0(block: bytes) -> list[float]:
    """32 values: a scale, the fifth bits as one word, low nibbles for the first half and high ones for the second."""
    scale, fifth, nibbles = half(block[:2]), int.from_bytes(block[2:6], "little"), block[6:]
    low = [nibbles[i] & 15 for i in range(16)] + [nibbles[i] >> 4 for i in range(16)]
    return [scale * ((value | (fifth >> i & 1) << 4) - 16) for i, value in enumerate(low)]


def q4_k(block: bytes) -> list[float]:
    """256 values in 8 groups; each has a scale and a minimum of 6 bits, packed into 12 bytes."""
    scale, least, packed, nibbles = half(block[:2]), half(block[2:4]), block[4:16], block[16:]
    found = []
    for group in range(8):
        if group < 4:
            s, m = packed[group] & 63, packed[group + 4] & 63
        else:
            s = packed[group + 4] & 15 | packed[group - 4] >> 6 << 4
            m = packed[group + 4] >> 4 | packed[group] >> 6 << 4
        for i in range(32):
            byte = nibbles[32 * (group // 2) + i]
            found.append(scale * s * (byte >> 4 if group % 2 else byte & 15) - least * m)
    return found


def q6_k(block: bytes) -> list[float]:
    """256 values: 4 low bits, 2 high bits, a signed scale for every 16, and the scale of all at the end."""
    low, high, scales, scale = block[:128], block[128:192], block[192:208], half(block[208:])
    found = []
    for i in range(256):
        part, place = divmod(i, 128)
        quarter, column = divmod(place, 32)
        byte = low[64 * part + 32 * (quarter % 2) + column]
        value = (byte >> 4 if quarter >= 2 else byte & 15) | (high[32 * part + column] >> 2 * quarter & 3) << 4
        found.append(scale * struct.unpack("b", scales[i // 16 : i // 16 + 1])[0] * (value - 32))
    return found


FORMATS: dict[str, tuple[int, Callable[[bytes], list[float]], tuple[int, ...]]] = {
    "Q8_0": (34, q8_0, (0,)),
    "Q5_0": (22, q5_0, (0,)),
    "Q4_K": (144, q4_k, (0, 2)),
    "Q6_K": (210, q6_k, (208,)),
}


@pytest.mark.parametrize("name", FORMATS)
def test_random_blocks_are_read_as_their_layout_says(name: str, tmp_path: Path) -> None:
    size, plain, scales = FORMATS[name]
    random = np.random.default_rng(0)
    data = random.integers(0, 256, (3, 2 * size), dtype=np.uint8)
    for at in [place + block for place in scales for block in (0, size)]:  # any bits, but numbers for scales
        data[:, at : at + 2] = random.normal(size=(3, 1)).astype(np.float16).view(np.uint8)
    writer = GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("blk.0.ffn_up.weight", data, raw_dtype=GGMLQuantizationType[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_header(tmp_path / "x.gguf").tensor("blk.0.ffn_up.weight")
    expected = [plain(row[:size].tobytes()) + plain(row[size:].tobytes()) for row in data]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
