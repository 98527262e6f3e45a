"""SBD's masks: as SciPy reads them, and no harm from files that are damaged."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import scipy.io
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import matlab

IDS = np.random.default_rng(0).integers(0, 21, (11, 14), np.uint8)


def saved(variables, packed=True):
    file = io.BytesIO()
    scipy.io.savemat(file, variables, do_compression=packed)
    return file.getvalue()


def as_sbd(ids=IDS):
    """The three fields that SBD's files have."""
    cells = np.empty((2, 1), object)
    cells[0, 0], cells[1, 0] = scipy.sparse.csc_matrix(np.eye(3)), np.eye(2)
    fields = {"Boundaries": cells, "Segmentation": ids, "CategoriesPresent": ids[:1]}
    return {"x": 1j, "GTcls": fields}


def read(content):
    return matlab.read_field(content, "GTcls", "Segmentation")


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("ids", [IDS, IDS[:1, :1], IDS[:2, :2], IDS[:, :1]])
def test_reads_what_scipy_wrote(packed, ids):
    np.testing.assert_array_equal(read(saved(as_sbd(ids), packed)), ids)


def test_other_order_of_bytes():
    """A file as a big-endian MATLAB writes it, by hand."""

    def element(kind, data):
        return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)

    def matrix(array_class, shape, name, *parts):
        flags = element(6, struct.pack(">II", array_class, 0))
        shape = element(5, struct.pack(f">{len(shape)}i", *shape))
        return element(14, flags + shape + element(1, name) + b"".join(parts))

    # [[1, 2, 3], [4, 5, 6]] goes by columns.
    mask = matrix(9, (2, 3), b"", element(2, bytes([1, 4, 2, 5, 3, 6])))
    names = element(5, struct.pack(">i", 16)) + element(
        1, b"Segmentation".ljust(16, b"\0")
    )
    content = (
        b"MATLAB".ljust(124) + b"\x01\x00MI" + matrix(2, (1, 1), b"GTcls", names, mask)
    )
    np.testing.assert_array_equal(read(content), [[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize(
    "variables, text",
    [
        ({"GTinst": np.zeros(3)}, "there is no GTcls"),
        ({"GTcls": np.zeros(3)}, "GTcls is no structure"),
        ({"GTcls": {"Other": IDS}}, "there is no Segmentation"),
        ({"GTcls": {"Segmentation": IDS * 1.0}}, "it is float64 .11, 14., not uint8"),
        ({"GTcls": {"Segmentation": IDS[None]}}, r"it is uint8 \[1, 11, 14\]"),
        ({"GTcls": {"Segmentation": IDS[:0]}}, "0 bytes have not the shape"),
    ],
)
def test_other_contents_are_named(variables, text):
    with pytest.raises(ValueError, match=text):
        read(saved(variables))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(0), st.sampled_from([0, 0xFF, 5, 14, 15]))
def test_damage_ends_in_a_mask_or_a_value_error(seed, place, value):
    content = bytearray(saved(as_sbd(), packed=False))
    content[place % len(content)] = value
    content = content[: 2000 + seed % 2000]
    try:
        ids = read(bytes(content))
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert ids.dtype == np.uint8 and ids.ndim == 2


def test_cells_in_cells_cost_no_stack():
    """Thousands of levels, at which SciPy's reader ends the process."""
    inner = b""
    for _ in range(20_000):
        header = struct.pack("<IIIIIIiiII", 6, 8, 1, 0, 5, 8, 1, 1, 1, 0)
        inner = struct.pack("<II", 14, len(header) + len(inner)) + header + inner
        if len(inner) > 2**20:
            break
    content = b"MATLAB".ljust(124) + b"\x00\x01IM" + inner
    with pytest.raises(ValueError, match="there is no GTcls"):
        read(content)


def test_a_bomb_is_refused_before_it_is_unpacked(monkeypatch):
    monkeypatch.setattr(matlab, "MAX_BYTES", 2**20)
    packed = zlib.compress(bytes(2**27))
    content = b"MATLAB".ljust(124) + b"\x00\x01IM" + struct.pack("<II", 15, len(packed))
    tracemalloc.start()
    with pytest.raises(ValueError, match="more than 1048576 bytes"):
        read(content + packed)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**23
