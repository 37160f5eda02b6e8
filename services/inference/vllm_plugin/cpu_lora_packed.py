"""A layer's adapters as vLLM's own small matrix products take them: on a CPU with AMX, in bfloat16.

For matrices as small as these, a product through torch takes three times as long and more, most of it
to get going. The weights are a copy in the order in which the CPU's tiles read them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

# What the tiles are made for.
_INPUTS, _OUTPUTS = 32, 16
# Rows of a weight that lie together once it is packed.
_BLOCK = 32
# Elements of a layer that may be packed again when one of its slots changes; a larger one is not packed.
_MOST = 4 * 2**20
# Elements up to which slices are one matrix with zeros between them: one product instead of several.
_MOST_MERGED = 100_000


@dataclass(frozen=True, slots=True)
class _Up:
    """Packed B: the columns of the low-rank activations that it takes, and those of the output."""

    low: slice
    out: slice
    weight: torch.Tensor


class PackedLayer:
    """All slots and slices of a layer; see of().

    Args:
        outs: of each slice.
    """

    def __init__(
        self, down: torch.Tensor, ups: Sequence[_Up], columns: int, outs: Sequence[slice]
    ) -> None:
        self._down, self._ups = down, tuple(ups)
        # Of the low-rank activations of one slice.
        self.columns = columns
        self._product = torch.ops._C.weight_packed_linear.default
        self.slices = len(outs)
        self._outs = tuple(outs)
        self.start = ups[0].out.start
        self._gapless = all(before.out.stop == after.out.start for before, after in pairwise(ups))
        # The column after the last one that it adds to.
        self.stop = ups[-1].out.stop
        # Whether each slice begins and ends where a block of the packed weights does.
        edges = [edge - self.start for out in outs for edge in (out.start, out.stop)]
        self.rewritable = all(edge % _BLOCK == 0 for edge in edges)

    @classmethod
    def of(
        cls, slices: Sequence[tuple[int, int, torch.Tensor, torch.Tensor]]
    ) -> PackedLayer | None:
        """Packs; None where the CPU, the data type or a size is not one for it.

        Args:
            slices: start and stop in the output, A [in, columns] and B [columns, out]; in order.
        """
        if not slices or not _usable(slices):
            return None
        columns = -(-slices[0][2].shape[1] // _INPUTS) * _INPUTS
        downs = [_padded(a.t(), columns) for _, _, a, _ in slices]
        blocks = [
            (
                slice(number * columns, (number + 1) * columns),
                slice(start, stop),
                _padded(b, columns),
            )
            for number, (start, stop, _, b) in enumerate(slices)
        ]
        width, height = slices[-1][1] - slices[0][0], columns * len(slices)
        if len(slices) > 1 and width * height <= _MOST_MERGED:
            merged = blocks[0][2].new_zeros(height, width)
            for low, out, block in blocks:
                merged[low, out.start - slices[0][0] : out.stop - slices[0][0]] = block
            blocks = [(slice(0, height), slice(slices[0][0], slices[-1][1]), merged)]
        ups = [_Up(low, out, _pack(block.t())) for low, out, block in blocks]
        outs = [slice(start, stop) for start, stop, _, _ in slices]
        return cls(_pack(torch.cat(downs)), ups, columns, outs)

    def rewrite(
        self, slot: int, slots: int, weights: Sequence[tuple[torch.Tensor, torch.Tensor]]
    ) -> None:
        """Puts one slot's other weights in place, where rewritable.

        Args:
            weights: per slice A [rank, in] and B [rank, out], of the rank that it was packed with.
        """
        rank = weights[0][0].shape[0]
        columns = torch.arange(rank) * slots + slot
        down = _blocks(self._down)
        for number, (a, b) in enumerate(weights):
            rows = number * self.columns + columns
            down[rows // _BLOCK, :, rows % _BLOCK] = a.reshape(rank, -1, 2)
            merged = len(self._ups) < self.slices
            up = self._ups[0 if merged else number]
            its = rows if merged else columns
            first, out = up.out.start, self._outs[number]
            place = slice((out.start - first) // _BLOCK, (out.stop - first) // _BLOCK)
            _blocks(up.weight)[place, its // 2, :, its % 2] = b.reshape(rank, -1, _BLOCK)

    def rewrite_rows(
        self, start: int, weights: Sequence[tuple[torch.Tensor, torch.Tensor]]
    ) -> None:
        """Puts other weights in place of columns that lie side by side, where rewritable.

        Args:
            start: the first of them, in each slice; even, as their number is.
            weights: per slice A [count, in] and B [count, out].
        """
        down, merged = _blocks(self._down), len(self._ups) < self.slices
        for number, (a, b) in enumerate(weights):
            count, first = a.shape[0], number * self.columns + start
            done = 0
            while done < count:
                row = first + done
                its = min(count - done, _BLOCK - row % _BLOCK)
                place = slice(row % _BLOCK, row % _BLOCK + its)
                down[row // _BLOCK, :, place] = (
                    a[done : done + its].view(its, -1, 2).transpose(0, 1)
                )
                done += its
            up = self._ups[0 if merged else number]
            row, out = (first if merged else start) // 2, self._outs[number]
            edges = [(edge - up.out.start) // _BLOCK for edge in (out.start, out.stop)]
            _blocks(up.weight)[slice(*edges), row : row + count // 2] = b.view(
                count // 2, 2, -1, _BLOCK
            ).permute(2, 0, 3, 1)

    def add(self, y: torch.Tensor, x: torch.Tensor, own: torch.Tensor, low: torch.Tensor) -> None:
        """y += x @ A * own @ B.

        Args:
            own: 1 where a token's row meets a column of its slot, else 0; [tokens, slices * columns].
            low: memory of that shape and x's type, to work in.
        """
        y[:, self.start : self.stop].add_(self.product(x, own, low))

    def product(self, x: torch.Tensor, own: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
        """x @ A * own @ B, [tokens, stop - start]; zero where there is no slice."""
        product = self._product
        product(low, x, self._down, None, True)
        low.mul_(own)
        size = x.shape[0], self.stop - self.start
        out = x.new_empty(size) if self._gapless else x.new_zeros(size)
        if len(self._ups) == 1:
            product(out, low, self._ups[0].weight, None, True)
            return out
        for up in self._ups:
            its = out[:, up.out.start - self.start : up.out.stop - self.start]
            product(its, low[:, up.low], up.weight, None, True)
        return out


def _usable(slices: Sequence[tuple[int, int, torch.Tensor, torch.Tensor]]) -> bool:
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    if supported is None or not supported() or not hasattr(torch.ops._C, "weight_packed_linear"):
        return False
    elements = sum(a.numel() + b.numel() for _, _, a, b in slices)
    return (
        elements <= _MOST
        and slices[0][2].dtype == torch.bfloat16
        and slices[0][2].shape[0] % _INPUTS == 0
        and all((stop - start) % _OUTPUTS == 0 for start, stop, _, _ in slices)
    )


def _padded(rows: torch.Tensor, count: int) -> torch.Tensor:
    return torch.nn.functional.pad(rows, (0, 0, 0, count - rows.shape[0]))


def _blocks(packed: torch.Tensor) -> torch.Tensor:
    """The order in which weights [out, in] are packed: [out / 32, in / 2, 32, 2]."""
    return packed.view(-1, packed.shape[1] // 2, _BLOCK, 2)


def _pack(weight: torch.Tensor) -> torch.Tensor:
    packed: torch.Tensor = torch.ops._C.convert_weight_packed(weight.contiguous())
    return packed
