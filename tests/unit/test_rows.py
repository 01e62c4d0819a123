"""Row bytes to numbers, bit for bit as the oracle says."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the runtime extra is not installed")

from tiercast_profiles.errors import BadInput  # noqa: E402
from tiercast_runtime import reference, rows  # noqa: E402

FORMATS = ["fp8_block32", "bf16", "int8_block32"]
LAYOUTS = ["packed", "split", "padded"]


def engram_of(mini_model, row_format, dialect="v41", row_values=64):
    return mini_model(dialect, engram={"row_format": row_format, "row_values": row_values}).engram


def same_bits(one, other):
    """Equal floats by their bits; any NaN equals any NaN."""
    is_nan = np.isnan(one)
    return np.array_equal(is_nan, np.isnan(other)) and np.array_equal(
        one[~is_nan].view(np.uint32), other[~is_nan].view(np.uint32)
    )


@pytest.mark.parametrize("dialect", ["v41", "demo"])
@pytest.mark.parametrize("row_format", FORMATS)
@pytest.mark.parametrize("num_rows", [0, 1, 7, rows._TABLE_LOOKUP_ROWS + 1])
def test_any_bytes_decode_as_the_oracle_says(mini_model, row_format, dialect, num_rows):
    engram = engram_of(mini_model, row_format, dialect)
    octets = np.random.default_rng(0).integers(0, 256, (num_rows, engram.row_bytes), dtype=np.uint8)
    decoded = rows.decode_rows(engram, torch.from_numpy(octets))
    assert decoded.dtype == torch.float32
    with np.errstate(invalid="ignore"):
        assert same_bits(reference.decode_rows(engram, octets), decoded.numpy())


@pytest.mark.parametrize("num_rows", [300, 900])
def test_plain_fp8_rows_take_the_fast_way_and_stay_exact(mini_model, num_rows):
    engram = engram_of(mini_model, "fp8_block32")
    octets = np.random.default_rng(1).integers(0, 0x7F, (num_rows, engram.row_bytes), dtype=np.uint8)
    octets[::2, :64] |= 0x80
    octets[:, 64:] = np.arange(3, 247)[np.arange(num_rows * 2) % 244].reshape(num_rows, 2)
    assert same_bits(reference.decode_rows(engram, octets), rows.decode_rows(engram, torch.from_numpy(octets)).numpy())


@pytest.mark.parametrize("num_copies", [1, 5])
def test_every_e4m3_code_under_every_scale(mini_model, num_copies):
    """256 codes × 256 scales, among them the subnormal scale 0 and the NaN scale 255."""
    engram = engram_of(mini_model, "fp8_block32", row_values=256)
    octets = np.zeros((256 * num_copies, 264), dtype=np.uint8)
    octets[:, :256] = np.arange(256)
    octets[:, 256:] = (np.arange(256 * num_copies) % 256)[:, None]
    decoded = rows.decode_rows(engram, torch.from_numpy(octets)).numpy()
    assert same_bits(reference.decode_rows(engram, octets), decoded)
    assert decoded[127, 0x38] == 1.0
    assert decoded[127, 0x7E] == 448.0
    assert decoded[127, 0xFE] == -448.0
    assert decoded[127, 1] == 2.0**-9
    assert np.isnan(decoded[127, [0x7F, 0xFF]]).all()
    assert np.isnan(decoded[255]).all()
    assert decoded[0, 0x38] == np.float32(2.0**-127)


def test_v41_rounds_to_bfloat16_and_the_demo_does_not(mini_model):
    octets = np.zeros((1, 64 + 8), dtype=np.uint8)
    octets[0, 0] = 3
    octets[0, 64:].view("<f4")[:] = 1 + 2.0**-20
    row = torch.from_numpy(octets)
    assert rows.decode_rows(engram_of(mini_model, "int8_block32", "v41"), row)[0, 0] == 3.0
    assert rows.decode_rows(engram_of(mini_model, "int8_block32", "demo"), row)[0, 0] == np.float32(3 + 3 * 2.0**-20)


@pytest.mark.parametrize("row_format", FORMATS)
def test_decoding_to_bfloat16_rounds_once_more(mini_model, row_format):
    engram = engram_of(mini_model, row_format)
    octets = torch.randint(0, 100, (5, engram.row_bytes), dtype=torch.uint8)
    expected = rows.decode_rows(engram, octets).bfloat16()
    assert torch.equal(rows.decode_rows(engram, octets, torch.bfloat16), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("row_format", FORMATS)
def test_layouts_keep_the_row(mini_model, row_format, layout):
    engram = engram_of(mini_model, row_format)
    packed = np.random.default_rng(0).integers(0, 256, (6, engram.row_bytes), dtype=np.uint8)
    parts = rows.to_parts(engram, layout, packed)
    assert tuple(part.shape[1] for part in parts) == rows.part_widths(engram, layout)
    assert sum(rows.part_widths(engram, layout)) == engram.stored_row_bytes(layout)
    back = rows.from_parts(engram, tuple(torch.from_numpy(np.ascontiguousarray(part)) for part in parts))
    assert np.array_equal(back.numpy(), packed)
    decoded = rows.decode_rows(engram, back)  # a padded row comes back as a view with a stride
    assert torch.equal(decoded.nan_to_num(), rows.decode_rows(engram, torch.from_numpy(packed)).nan_to_num())


def test_rows_of_another_shape_or_type_are_refused(mini_model):
    engram = engram_of(mini_model, "fp8_block32")
    for bad in (torch.zeros(2, 65, dtype=torch.uint8), torch.zeros(66, dtype=torch.uint8), torch.zeros(2, 66)):
        with pytest.raises(BadInput, match=r"must be uint8 \[n, 66\]"):
            rows.decode_rows(engram, bad)
    with pytest.raises(BadInput, match="must be"):
        reference.decode_rows(engram, np.zeros((2, 65), dtype=np.uint8))
