"""Reads one safetensors file of a version: header, then every value once, in bounded memory."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from services.registry.admission import content as contents
from services.registry.admission import header as header_check
from services.registry.admission import magic
from services.registry.admission.content import Content
from services.registry.admission.header import LENGTH_BYTES, PREFIX_BYTES, HeaderRules, Tensor
from services.registry.admission.values import FiniteScan
from services.registry.domain import File

# Above it parsing takes long enough to be worth a thread.
_SHORT_HEADER_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Weights:
    """A weights file whose header is read; data is all its bytes where it is small."""

    file: File
    tensors: list[Tensor]
    data: bytes | None


async def read_header(content: Content, file: File, rules: HeaderRules) -> Weights:
    """The file's tensors, in the order of their bytes.

    Raises:
        GraftError: VERSION_REFUSED.
    """
    data: bytes | None = None
    if file.size_bytes <= contents.WHOLE_BYTES:
        data = await content.whole(file)
    else:
        await content.check_size(file)
    prefix = data[:PREFIX_BYTES] if data else await content.part(file, 0, magic.HEAD_BYTES)
    length = header_check.header_length(prefix, file.size_bytes, rules)
    end = LENGTH_BYTES + length
    text = data[LENGTH_BYTES:end] if data else await content.part(file, LENGTH_BYTES, length)
    if length <= _SHORT_HEADER_BYTES:
        tensors = header_check.parse_header(text, file.size_bytes, rules)
    else:
        tensors = await asyncio.to_thread(header_check.parse_header, text, file.size_bytes, rules)
    return Weights(file, tensors, data)


async def scan_values(content: Content, weights: Weights) -> dict[str, float]:
    """Looks at every value; answers the largest absolute one of every float tensor.

    Raises:
        GraftError: VERSION_REFUSED, naming the tensor and the element.
    """
    scan, file, begin = FiniteScan(weights.tensors), weights.file, weights.tensors[0].begin
    if weights.data is not None:
        scan.feed(weights.data[begin:])
        tail = weights.data[-magic.TAIL_BYTES :]
    else:
        async for chunk in content.stream(file, begin):
            # A chunk takes a tenth of a millisecond, less than a thread's turn.
            scan.feed(chunk)
        tail_begin = max(0, file.size_bytes - magic.TAIL_BYTES)
        tail = await content.part(file, tail_begin, magic.TAIL_BYTES)
    assert scan.done, "the header covers the file to its end"
    contents.refuse_zip(file.path, tail)
    return scan.largest()
