"""`run_matmul`: exact for int8, close for floating point, the same on the hardware."""

import numpy as np
import pytest
import torch

import celosia
from celosia import run_matmul
from celosia_sim.reference import sqnr_db


def integers(*shape, seed=0):
    return np.random.default_rng(seed).integers(-128, 128, shape, np.int8)


SHAPES = [
    ((1, 1), (1, 1)),
    ((5, 7), (7, 9)),
    ((20, 10), (10, 61)),
    ((7, 35), (35, 5)),  # inner dimension in parts
    ((3, 4, 12), (12, 6)),
    ((2, 1, 4, 12), (3, 12, 6)),
    ((2, 10), (10, 70)),  # more columns than the banks hold
]


@pytest.mark.parametrize(("left", "right"), SHAPES)
def test_integers_are_exact(device_spec, left, right):
    a, b = integers(*left), integers(*right, seed=1)
    with celosia.open_device(device_spec) as opened:
        result = run_matmul(a, b)
        report = opened.report
    assert report is not None
    expected = a.astype(np.int64) @ b.astype(np.int64)
    assert result.dtype == np.int32
    np.testing.assert_array_equal(result, expected)
    assert report.useful_macs == expected.size * left[-1]


def test_extremes_over_a_long_inner_dimension():
    a, b = np.full((2, 3000), -128, np.int8), np.full((3000, 3), -128, np.int8)
    np.testing.assert_array_equal(run_matmul(a, b, device="model:small"), 3000 << 14)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats(dtype):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(50, 70)) * 10.0 ** rng.uniform(-1, 1, (50, 1))
    b = rng.normal(size=(70, 30)) * 10.0 ** rng.uniform(-1, 1, 30)
    result = run_matmul(a.astype(dtype), b.astype(dtype), device="model:small")
    assert result.dtype == dtype
    for axis in (0, 1):  # each row and column has its own scale
        for row, expected in zip(
            np.moveaxis(result, axis, 0), np.moveaxis(a @ b, axis, 0), strict=True
        ):
            assert sqnr_db(expected, row) > 25
    assert not run_matmul(0 * a, b, device="model:small").any()


def test_tensors():
    a, b = torch.from_numpy(integers(4, 5)), torch.from_numpy(integers(5, 6))
    result = run_matmul(a, b, device="model:tiny")
    assert result.dtype == torch.int32
    assert torch.equal(result, a.int() @ b.int())
    floats = run_matmul(a.to(torch.bfloat16), b.to(torch.bfloat16), device="model:tiny")
    assert floats.dtype == torch.bfloat16


def test_between_attentions_on_the_hardware(hardware):
    """The arrays change their use; nothing is left over."""
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 2, 30, 10))
    a, b = integers(20, 30), integers(30, 40, seed=1)
    with celosia.open_device(hardware) as sim, celosia.open_device("model:tiny") as model:
        for causal in (False, True):
            results = [
                celosia.run_attention_raw(q, k, v, is_causal=causal, device=device).values
                for device in (sim, model)
            ]
            np.testing.assert_array_equal(results[0], results[1])
            products = run_matmul(a, b, device=sim)
            np.testing.assert_array_equal(products, a.astype(int) @ b.astype(int))


def test_utilization_of_the_score_array():
    with celosia.open_device("sim:small") as device:
        run_matmul(integers(256, 64), integers(64, 256), device=device)
        report = device.report
    assert report is not None
    assert report.utilization is not None
    assert report.utilization > 0.9
    assert report.utilization == report.useful_macs / (report.clocks * 64)


A, B = integers(4, 5), integers(5, 6)
REJECTED = {
    "kinds": ((A, B.astype(float)), TypeError, "a is int8 and b is float64"),
    "kind": ((A.astype(int), B), TypeError, "a is int64"),
    "inner": ((A, B[:4]), ValueError, r"a of shape \(4, 5\) and b of shape \(4, 6\)"),
    "vector": ((A[0], B), ValueError, r"\(5,\)"),
    "empty": ((A[:0], B), ValueError, "empty"),
    "lead": ((np.stack([A] * 2), np.stack([B] * 3)), ValueError, r"\(2,\) and b \(3,\)"),
    "nan": ((A * np.nan, B.astype(float)), ValueError, "a contains NaN"),
    "long": (
        (np.zeros((1, 1 << 17), np.int8), np.zeros((1 << 17, 1), np.int8)),
        ValueError,
        "131072 exceeds 131071",
    ),
}


@pytest.mark.parametrize("case", REJECTED)
def test_rejected_before_anything_is_sent(case, device_spec, monkeypatch):
    arguments, error, message = REJECTED[case]
    with celosia.open_device(device_spec) as device:
        with monkeypatch.context() as patch:
            patch.setattr(device, "_exchange", lambda *_: pytest.fail("sent a packet"))
            with pytest.raises(error, match=message):
                run_matmul(*arguments)
        np.testing.assert_array_equal(run_matmul(A, B), A.astype(int) @ B.astype(int))
