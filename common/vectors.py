"""Vectors as they cross the queue: as the bytes of their float32 numbers, and as JSON only for a reader.

A result with vectors is stored as msgpack, any other as JSON. The two tell themselves apart by their first byte: a
msgpack map's is 0x80 to 0x8f, with which no JSON begins, and no blob reference either.
"""

from __future__ import annotations

import binascii
import struct
from typing import Any, Literal

import msgspec

EncodingFormat = Literal["float", "base64"]
FLOAT_BYTES = 4


class Vectors(msgspec.Struct, frozen=True):
    """Vectors of one length: `data` is float32, little-endian, one vector after the other."""

    data: bytes
    dimensions: int
    encoding_format: EncodingFormat = "float"  # how a reader gets them


class _Stored(msgspec.Struct, frozen=True):
    vectors: Vectors
    output: dict[str, Any]


def stored(output: dict[str, Any], vectors: Vectors) -> bytes:
    """A result with vectors, as it is stored."""
    return _encode(_Stored(vectors, output))


def rendered(body: bytes) -> msgspec.Raw:
    """A stored result as JSON, with the vectors as `embeddings`: lists of numbers, or base64 as the job asked."""
    if not 0x80 <= body[0] <= 0x8F:
        return msgspec.Raw(body)
    found = _decode(body)
    return msgspec.Raw(msgspec.json.encode({"embeddings": _rows(found.vectors), **found.output}))


def _rows(vectors: Vectors) -> list[msgspec.Raw]:
    # One at a time: in a thread, a large result lets the event loop in between any two.
    size = vectors.dimensions * FLOAT_BYTES
    render = _base64 if vectors.encoding_format == "base64" else _numbers
    return [render(vectors.data[start : start + size]) for start in range(0, len(vectors.data), size)]


def _base64(row: bytes) -> msgspec.Raw:
    return msgspec.Raw(b'"%b"' % binascii.b2a_base64(row, newline=False))


def _numbers(row: bytes) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(struct.unpack(f"<{len(row) // FLOAT_BYTES}f", row)))


_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.Decoder(_Stored).decode
