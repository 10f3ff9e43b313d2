"""Arrays of other libraries in, and results of the caller's kind out."""

import numpy as np
import pytest

from celosia import Quantized, run_attention, run_matmul


class Foreign:
    """An array of a library of its own."""

    def __init__(self, array):
        self.array, self.dtype = array, array.dtype

    def __array_namespace__(self):
        return type(
            "library",
            (),
            {"asarray": lambda array, dtype=None: type(self)(np.asarray(array, dtype))},
        )


class OnlyDLPack(Foreign):
    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class LikeCuPy(Foreign):
    def __array__(self, *arguments, **options):
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    def __dlpack__(self, **options):
        raise BufferError("on a GPU")

    def __dlpack_device__(self):
        return (2, 0)

    def get(self):
        return self.array


def qkv():
    return np.random.default_rng(0).normal(size=(3, 2, 5, 8)).astype(np.float32)


@pytest.mark.parametrize("kind", [OnlyDLPack, LikeCuPy])
def test_protocols(kind):
    arrays = qkv()
    expected = run_attention(*arrays, device="model:tiny")
    result = run_attention(*(kind(x) for x in arrays), device="model:tiny")
    assert type(result) is kind
    np.testing.assert_array_equal(result.array, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_jax(dtype):
    jax = pytest.importorskip("jax")
    arrays = [jax.numpy.asarray(x, dtype) for x in qkv()]
    result = run_attention(*arrays, device="model:tiny")
    assert isinstance(result, jax.Array)
    assert result.dtype == dtype
    assert result.devices() == arrays[0].devices()
    same = run_attention(*(np.asarray(x.astype("float32")) for x in arrays), device="model:tiny")
    np.testing.assert_allclose(np.asarray(result.astype("float32")), same, atol=0.01)
    products = run_matmul(*(x[0].astype("int8") for x in (arrays[0], arrays[1].mT)), device="model")
    assert isinstance(products, jax.Array)
    assert products.dtype == "int32"
    quantized = Quantized(jax.numpy.ones((5, 8), "int8"), 0.1)
    assert isinstance(run_attention(*[quantized] * 3, device="model:tiny"), jax.Array)


def test_a_traced_array_is_rejected():
    jax = pytest.importorskip("jax")
    with pytest.raises(TypeError, match=r"cannot be read as an array"):
        jax.jit(lambda q: run_attention(q, q, q, device="model:tiny"))(qkv()[0])
