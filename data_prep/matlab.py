"""One mask out of a MATLAB 5 file, whatever else the file says.

SciPy reads everything there is in such files, and believes it: a damaged type ends the
process with a bus error, cells in cells with an overflow of the stack, and a few bytes
ask for gigabytes.  The masks of SBD lie in one field of one structure, and for these
a walk over the elements is enough; it never asks for more than the file holds.

    header of 128 bytes, elements (type, size, content), padded to 8 bytes each
    a matrix is an element that holds: flags, shape, name, and what its class demands;
    a structure demands: length of a field's name, the names, a matrix for each field
"""

import struct
import zlib
from collections.abc import Iterator

import numpy as np

MAX_BYTES = 2**28  # of an unpacked element

_HEADER = 128  # bytes
_INT8, _UINT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 2, 5, 6, 14, 15  # of elements
_STRUCTURE, _UINT8_ARRAY = 2, 9  # classes of matrices
_CLASSES = {1: "cell", 2: "structure", 4: "char", 5: "sparse", 6: "float64", 9: "uint8"}


def read_field(content: bytes, variable: str, field: str) -> np.ndarray:
    """Reads `variable.field`, a matrix of bytes.

    Args:
        content: The file.
        variable: Name of a 1x1 structure.
        field: One of its fields.

    Returns:
        [H, W] uint8.

    Raises:
        ValueError: There is no such field, it is of another kind, or the file is
            damaged.
    """
    orders = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}
    order = orders.get(content[_HEADER - 4 : _HEADER])
    if order is None:
        raise ValueError("it is no MATLAB 5 file")
    for kind, data in _elements(content[_HEADER:], order):
        if kind == _COMPRESSED:
            kind, data = next(_elements(_unpack(data), order), (None, b""))
        if kind != _MATRIX:
            continue
        array_class, shape, name, parts = _matrix(data, order)
        if name == variable:
            if array_class != _STRUCTURE or shape != (1, 1):
                raise ValueError(f"{variable} is no structure")
            return _bytes(_field(parts, field, order), order)
    raise ValueError(f"there is no {variable}")


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """(type, content) of the elements that stand one after another."""
    position = 0
    while position + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, position)
        # What is compressed is not padded.
        start, step = position + 8, 8 + size + (-size % 8) * (kind != _COMPRESSED)
        if kind >> 16:  # four bytes or fewer lie within the first eight
            kind, size, start, step = kind & 0xFFFF, kind >> 16, position + 4, 8
            if size > 4:
                raise ValueError(f"{size} bytes cannot lie within a tag")
        if start + size > len(data):
            raise ValueError(f"it ends {start + size - len(data)} bytes too early")
        yield kind, data[start : start + size]
        position += step


def _unpack(data: bytes) -> bytes:
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(data, MAX_BYTES)
    except zlib.error as error:
        raise ValueError(f"it cannot be unpacked: {error}") from error
    if stream.unconsumed_tail:
        raise ValueError(f"it unpacks to more than {MAX_BYTES} bytes")
    if not stream.eof:
        raise ValueError("it ends too early")
    return plain


def _matrix(data: bytes, order: str):
    """(class, shape, name, the elements behind them) of a matrix."""
    parts = _elements(data, order)
    flags, shape, name = (_next(parts, kind) for kind in (_UINT32, _INT32, _INT8))
    if len(flags) != 8 or len(shape) % 4:
        raise ValueError("a matrix has a damaged header")
    (flags,) = struct.unpack_from(f"{order}I", flags)
    shape = struct.unpack(f"{order}{len(shape) // 4}i", shape)
    return flags & 0xFF, shape, name.decode("latin-1"), parts


def _field(parts: Iterator[tuple[int, bytes]], field: str, order: str) -> bytes:
    """The content of a structure's field."""
    width = _next(parts, _INT32)
    width = struct.unpack(f"{order}i", width)[0] if len(width) == 4 else 0
    if width < 1:
        raise ValueError("the names of its fields are damaged")
    names = _next(parts, _INT8)
    for start in range(0, len(names), width):
        data = _next(parts, _MATRIX)
        if names[start : start + width].split(b"\0")[0] == field.encode():
            return data
    raise ValueError(f"there is no {field}")


def _bytes(data: bytes, order: str) -> np.ndarray:
    array_class, shape, _, parts = _matrix(data, order)
    if array_class != _UINT8_ARRAY or len(shape) != 2:
        found = _CLASSES.get(array_class, f"of class {array_class}")
        raise ValueError(f"it is {found} {list(shape)}, not uint8 [H, W]")
    pixels = np.frombuffer(_next(parts, _UINT8), np.uint8)
    if min(shape) < 1 or pixels.size != shape[0] * shape[1]:
        raise ValueError(f"{pixels.size} bytes have not the shape {list(shape)}")
    return pixels.reshape(shape, order="F")


def _next(parts: Iterator[tuple[int, bytes]], kind: int) -> bytes:
    found, data = next(parts, (None, b""))
    if found != kind:
        raise ValueError(f"an element is of type {found}, not {kind}")
    return data
