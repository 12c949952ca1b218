"""Where the maps of a network lie in static arrays: each from its first writer to its last reader."""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Buffer:
    """A part of a static array: "maps" of float, or "bits" of uint32_t.

    Attributes:
      size: elements.
      begin, end: the steps that write it first and read it last.
      tensors: numbers of the tensors that lie in it.
      at: its first element.
    """

    array: str
    size: int
    begin: int
    end: int
    tensors: list[int] = field(default_factory=list)
    at: int = 0

    def __str__(self):
        return f"{self.array} + {self.at}"


class Buffers:
    """All buffers of a program.

    Attributes:
      last: tensor -> the step that reads it last.
      at: tensor, or (tensor, how its bits lie) -> where.
    """

    def __init__(self, last: dict[int, int]):
        self.last, self.at, self.all = last, {}, []

    def new(self, key, size: int, step: int, array: str = "maps") -> Buffer:
        """A buffer of its own for a tensor, or for the bits of one."""
        tensor = key if isinstance(key, int) else key[0]
        self.at[key] = Buffer(array, size, step, self.last.get(tensor, step), [tensor])
        self.all.append(self.at[key])
        return self.at[key]

    def join(self, tensor: int, buffer: Buffer) -> Buffer:
        """A tensor lies where another does."""
        buffer.tensors.append(tensor)
        buffer.end = max(buffer.end, self.last.get(tensor, buffer.end))
        self.at[tensor] = buffer
        return buffer

    def free(self, tensor: int, step: int) -> Buffer | None:
        """The buffer of a tensor, if nothing later than a step reads it."""
        buffer = self.at[tensor]
        return buffer if all(self.last.get(t, -1) <= step for t in buffer.tensors) else None

    def over(self, number: int, inputs: Iterable[int], size: int, step: int) -> Buffer:
        """Where the output of an operation goes whose elements are on their own: over an input, or apart."""
        buffer = next(filter(None, (self.free(i, step) for i in inputs)), None)
        return self.join(number, buffer) if buffer else self.new(number, size, step)

    def place(self) -> dict[str, int]:
        """Gives every buffer its place, the largest first; returns the sizes of the arrays."""
        sizes, placed = {"maps": 0, "bits": 0}, []
        for buffer in sorted(self.all, key=lambda b: -b.size):
            others = [b for b in placed if b.array == buffer.array and b.begin <= buffer.end and buffer.begin <= b.end]
            for other in sorted(others, key=lambda b: b.at):
                if buffer.at + buffer.size <= other.at:
                    break
                buffer.at = max(buffer.at, other.at + other.size)
            placed.append(buffer)
            sizes[buffer.array] = max(sizes[buffer.array], buffer.at + buffer.size)
        return sizes
