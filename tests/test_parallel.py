"""Several devices behind one `DevicePool`: the results of one device."""

import copy
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest

import celosia
from celosia import DevicePool, run_attention, run_attention_raw, run_matmul
from celosia.attention import plan_attention


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module", params=["threads", "processes", "open devices", "dask"])
def pool(request):
    if request.param == "threads":
        with DevicePool(["model:tiny"] * 3) as pool:
            yield pool
    elif request.param == "processes":
        with ProcessPoolExecutor(2) as executor:
            yield DevicePool(["model:tiny"] * 2, executor=executor)
    elif request.param == "open devices":
        devices = [celosia.open_device(name) for name in ("sim:tiny", "model:tiny")]
        with DevicePool(devices) as pool:
            yield pool
        assert not any(device.is_closed for device in devices)
        for device in devices:
            device.close()
    else:
        distributed = pytest.importorskip("distributed")
        cluster = distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        )
        with cluster, distributed.Client(cluster) as client:
            yield DevicePool(["model:tiny"] * 2, executor=client.get_executor(pure=False))


# Groups of heads, masks that differ, and a batch that shares its keys.
CASES = {
    "batch": ((2, 3, 9, 8), (2, 3, 12, 8), {}),
    "causal groups": ((1, 4, 9, 8), (1, 2, 9, 8), {"enable_gqa": True, "is_causal": True}),
    "one head": ((9, 8), (12, 8), {}),
    "lengths": ((3, 2, 5, 8), (3, 2, 12, 8), {"key_length": [3, 0, 12]}),
    "shared keys": ((4, 2, 5, 8), (1, 2, 12, 8), {"attn_mask": random(4, 1, 5, 12) > 0}),
    "chunks": ((2, 4, 8), (2, 60, 8), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_attention(pool, case):
    query_shape, key_shape, options = CASES[case]
    q, k, v = random(*query_shape), random(*key_shape, seed=1), random(*key_shape, seed=2)
    raw = run_attention_raw(q, k, v, **options, device=pool)
    one = run_attention_raw(q, k, v, **options, device="model:tiny")
    np.testing.assert_array_equal(raw.values, one.values)
    np.testing.assert_array_equal(raw.dequantize(), one.dequantize())


def test_saturating_heads_run_again(pool):
    """A sample of the queries says too little about these heads, on whichever device they are."""
    q, k, v = 0.01 * random(4, 200, 8), random(4, 40, 8, seed=1), random(4, 40, 8, seed=2)
    q[:, 1], k[:, 0], v[:, 0] = 10, 3, 4  # one query attends to the largest V alone
    raw = run_attention_raw(q, k, v, device=pool)
    job = plan_attention(pool.config, q, k, v)
    planned = np.array([group.values.result_fraction for group in job.groups])
    used = [np.log2(g.values.scale / s) for g, s in zip(job.groups, raw.scale.flat, strict=True)]
    assert (planned > 8).all()
    np.testing.assert_array_equal(used, 8)
    one = run_attention_raw(q, k, v, device="model:tiny")
    np.testing.assert_array_equal(raw.values, one.values)
    np.testing.assert_array_equal(raw.scale, one.scale)


@pytest.mark.parametrize("shapes", [((7, 12), (12, 5)), ((3, 4, 12), (3, 12, 5)), ((1, 3), (3, 1))])
def test_products(pool, shapes):
    a, b = random(*shapes[0]), random(*shapes[1], seed=1)
    np.testing.assert_array_equal(
        run_matmul(a, b, device=pool), run_matmul(a, b, device="model:tiny")
    )
    a, b = (100 * a).clip(-128, 127).astype(np.int8), (100 * b).clip(-128, 127).astype(np.int8)
    np.testing.assert_array_equal(run_matmul(a, b, device=pool), a.astype(int) @ b.astype(int))


def test_errors_leave_the_pool_usable(pool):
    q = random(2, 4, 8)
    with pytest.raises(ValueError, match="head dimension 99"):
        run_attention(*[random(2, 4, 99)] * 3, device=pool)
    with pytest.raises(TypeError, match="int64"):
        run_attention(q, q, np.ones((2, 4, 8), int), device=pool)
    assert run_attention(q, q, q, device=pool).shape == q.shape


def test_clocks_go_on_side_by_side():
    q = random(4, 16, 8)
    with celosia.open_device("sim:tiny") as device:
        run_attention(q, q, q)
        alone = device.report
    with DevicePool(["sim:tiny"] * 2) as pool:
        assert pool.config == device.config
        run_attention(q, q, q)  # the pool is the default device
        both = pool.report
    assert alone is not None
    assert both is not None
    assert both.useful_macs == alone.useful_macs
    assert 0.5 < both.clocks / alone.clocks < 0.6
    peak = 2 * both.clocks * device.config.multipliers
    assert both.utilization == pytest.approx(both.useful_macs / peak)
    with pytest.raises(celosia.DeviceError, match="pool is closed"):
        run_attention(q, q, q, device=pool)
    with pytest.raises(celosia.DeviceError, match="no device"):
        run_attention(q, q, q)


def test_rejected():
    with celosia.open_device("model:tiny") as device:
        for devices, error, message in (
            ("model:tiny", TypeError, "sequence"),
            ([], ValueError, "at least one"),
            ([3], TypeError, "not 3"),
            ([device, device], ValueError, "only once"),
            ([device, "model:small"], ValueError, "configurations of device 0 and model:small"),
            (["mode:tiny"], ValueError, "unknown device 'mode:tiny'"),
        ):
            with pytest.raises(error, match=message):
                DevicePool(devices)  # type: ignore
        with pytest.raises(TypeError, match="submit"):
            DevicePool(["model:tiny"], executor=map)
        with pytest.raises(TypeError, match="cannot be copied"):
            copy.deepcopy(device)
        with pytest.raises(TypeError, match="another process: give its name"):
            pickle.dumps(device)


def test_an_executor_of_threads_shares_no_device():
    with ThreadPoolExecutor(1) as executor:
        pool = DevicePool(["model:tiny"] * 2, executor=executor)
        q = random(2, 4, 8)
        assert run_attention(q, q, q, device=pool).shape == q.shape
