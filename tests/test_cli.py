"""The command `celosia`, on the integer model."""

import io
import json
import math
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

import celosia
from celosia.cli import main
from celosia.evaluate import reference_attention
from celosia_hw.config import preset
from celosia_sim.reference import attention
from celosia_sim.reference import sqnr_db as sqnr

KEYS = {
    "clocks",
    "macs",
    "utilization",
    "sqnr_db",
    "ideal_sqnr_db",
    "cosine",
    "rmse",
    "max_abs_error",
    "model_mismatches",
    "link_bytes",
    "sim_clocks_per_second",
    "config",
}


def run_json(capsys, *arguments):
    assert main(["run", *arguments, "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.fixture
def npz(tmp_path):
    """Writes an .npz file and returns its path."""

    def write(**arrays):
        path = tmp_path / "input.npz"
        np.savez(path, **arrays)
        return str(path)

    return write


def test_the_part_of_a_layer_in_the_package(capsys):
    result = run_json(capsys, "--device", "model:small")
    assert set(result) >= KEYS
    assert result["model_mismatches"] == 0
    assert (result["heads"], result["key_heads"], result["queries"]) == (3, 1, 128)
    assert result["is_causal"] is True
    assert result["macs"] == 3 * 128 * 129 // 2 * 128
    assert result["config"] == preset("small").to_dict()
    # The bound on what all but the int8 rounding of Q, K and V costs.
    assert result["sqnr_db"] > result["ideal_sqnr_db"] - 0.1
    assert result["reference"] == "PyTorch"
    assert result["clocks"] == 0
    assert result["utilization"] is result["sim_clocks_per_second"] is None


def test_the_package_names_the_origin_of_its_data():
    data = files("celosia") / "data"
    assert "Apache License" in (data / "NOTICE").read_text()
    assert len((data / "smollm2_layer17.npz").read_bytes()) < 120_000


def test_table(capsys):
    assert main(["run", "--device", "model:small"]) == 0
    captured = capsys.readouterr()
    assert "int8 rounding alone" in captured.out
    assert "float32 PyTorch" in captured.out
    assert "0 (the device is the model)" in captured.out
    assert "48 of 48 query tiles" in captured.err


@pytest.mark.parametrize(("queries", "keys", "dim"), [(1, 1, 1), (17, 33, 10), (5, 48, 3)])
def test_random_input(capsys, queries, keys, dim):
    arguments = ["--queries", str(queries), "--keys", str(keys), "--head-dim", str(dim)]
    result = run_json(capsys, "--device", "model:tiny", *arguments)
    assert (result["heads"], result["queries"], result["keys"]) == (1, queries, keys)
    assert result["macs"] == queries * keys * 2 * dim
    # The bound of test_attention.py.
    assert result["sqnr_db"] > 35


def test_the_seed_counts(capsys):
    first, again, other = (
        run_json(capsys, "--device", "model", "--seed", seed)["sqnr_db"] for seed in "001"
    )
    assert first == again != other


def test_input_and_output(capsys, npz, tmp_path):
    q, k, v = random(4, 7, 8), random(2, 9, 8, seed=1), random(2, 9, 5, seed=2)
    path, output = npz(query=q, key=k, value=v, key_length=6), tmp_path / "out.npz"
    result = run_json(
        capsys, "--device", "model:tiny", "--input", path, "--causal", "--output", str(output)
    )
    assert result["is_causal"] is True
    assert result["value_dim"] == 5
    with np.load(output) as data:
        got = data["output"]
    assert got.dtype == np.float32
    high = np.minimum(np.arange(1, 8), 6)
    expected = attention(q, k.repeat(2, axis=0), v.repeat(2, axis=0), high=high)
    assert got.shape == expected.shape
    assert sqnr(expected, got) == pytest.approx(result["sqnr_db"], abs=1e-3)


def test_is_causal_of_the_file(capsys, npz):
    x = random(1, 6, 4)
    result = run_json(
        capsys, "--device", "model:tiny", "--input", npz(query=x, key=x, value=x, is_causal=True)
    )
    assert result["macs"] == 21 * 8


def test_reference_without_torch(monkeypatch):
    q, k, v = (random(2, 5, 4, seed=n).astype(np.float32) for n in range(3))
    options = {"is_causal": True, "key_length": np.array([5, 3])}
    expected = reference_attention(q, k, v, **options)
    monkeypatch.setattr("celosia.evaluate.importlib.util.find_spec", lambda name: None)
    result = reference_attention(q, k, v, **options)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_infinite_figures_are_null(capsys, npz):
    """Zeros come out exactly: infinite signal to noise is not JSON."""
    x = np.zeros((1, 3, 4))
    result = run_json(capsys, "--device", "model:tiny", "--input", npz(query=x, key=x, value=x))
    assert result["sqnr_db"] is None
    assert result["max_abs_error"] == 0


def test_a_mismatch_is_counted_and_fails(capsys, monkeypatch):
    """A second device that computes something else."""
    opened = []

    class Odd:
        def __init__(self, config):
            self.inner = model(config)
            self.clocks = 0
            self.odd = bool(opened)
            opened.append(self)

        def exchange(self, commands, replies, progress=None):
            found = self.inner.exchange(commands, replies, progress)
            if self.odd and len(commands) > 1:
                found[0] = found[0][:-1] + bytes([found[0][-1] ^ 0xFF])
            return found

        def close(self):
            pass

    from celosia import device
    from celosia_sim import model_device

    model = model_device.ModelTransport
    monkeypatch.setattr(model_device, "ModelTransport", Odd)
    monkeypatch.setitem(
        device._KINDS, "odd", ("celosia_sim.model_device", "ModelTransport", "small")
    )
    sizes = ["--queries", "8", "--keys", "8", "--head-dim", "4"]
    assert main(["run", "--device", "odd", *sizes, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["model_mismatches"] == 1


X = random(2, 5, 4)


def npy_bytes(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz_bytes(**arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def flipped(data):
    middle = len(data) // 2
    return (
        data[:middle]
        + bytes(byte ^ 0xFF for byte in data[middle : middle + 40])
        + data[middle + 40 :]
    )


BROKEN = {
    "empty": (b"", "is no .npz file"),
    "text": (b"hello\n", "is no .npz file"),
    "npy": (npy_bytes(X), "is no .npz file"),
    "truncated": (npz_bytes(query=X, key=X, value=X)[:500], "is no .npz file"),
    "damaged": (flipped(npz_bytes(query=X, key=X, value=X)), "is a broken .npz file"),
    "objects": (npz_bytes(query=np.array([{}]), key=X, value=X), "holds more than plain arrays"),
    "missing": (npz_bytes(query=X, key=X), "has no array 'value', only query, key"),
    "rank": (npz_bytes(query=X[0], key=X, value=X), r"query of x.npz has shape (5, 4)"),
    "integers": (npz_bytes(query=X, key=X.astype(int), value=X), "key of x.npz is int64"),
    "nan": (npz_bytes(query=X, key=X, value=X * np.nan), "value contains NaN"),
    "head dims": (npz_bytes(query=X, key=X[..., 1:], value=X), "query (4) and key (3) differ"),
    "tokens": (npz_bytes(query=X, key=X, value=X[:, 1:]), "key has 5 tokens, value 4"),
    "heads": (npz_bytes(query=X[[0, 0, 0]], key=X, value=X), "3 query heads are no multiple of 2"),
    "no tokens": (npz_bytes(query=X, key=X[:, :0], value=X[:, :0]), "key is empty"),
    "length": (npz_bytes(query=X, key=X, value=X, key_length=6), "between 0 and 5, not 6"),
    "causal": (npz_bytes(query=X, key=X, value=X, is_causal=[True, False]), "must be one bool"),
    "too wide": (npz_bytes(query=np.ones((1, 2, 11)), key=np.ones((1, 2, 11)), value=X[:1, :2]),
                 "head dimension 11 of query exceeds the device's maximum of 10"),
}  # fmt: skip


def check_error(capsys, status, message):
    captured = capsys.readouterr()
    assert status == 2
    assert not captured.out
    lines = captured.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("celosia: error: ")
    assert message in lines[0]


@pytest.mark.parametrize("case", BROKEN)
def test_broken_input(capsys, tmp_path, case):
    data, message = BROKEN[case]
    path = tmp_path / "x.npz"
    path.write_bytes(data)
    check_error(capsys, main(["run", "--device", "model:tiny", "--input", str(path)]), message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run --input no/such.npz", "No such file or directory: 'no/such.npz'"),
        ("run --input .", "Is a directory"),
        ("run --device fpga", "unknown device 'fpga': choose one of sim[:CONFIG]"),
        ("run --device serial:/dev/ttyNONE", "no such port"),
        ("run --device model:huge", "unknown configuration 'huge'"),
        ("run --config huge", "unknown configuration 'huge': choose one of tiny, small, default"),
        ("run --device model:tiny --head-dim 11", "head dimension 11 of query exceeds"),
        (
            "run --device model:tiny --queries 1 --keys 32769 --head-dim 2",
            "32769 keys, but the device attends to at most 32768 (max_sequence)",
        ),
        ("run --device model --input x.npz --heads 2", "exclude each other"),
        ("run --device model --waveform x.fst", "only the device 'sim' writes a waveform"),
        ("run --device model --output no/such/folder.npz", "no/such/folder.npz"),
        ("info --config huge", "unknown configuration 'huge'"),
    ],
)
def test_errors(capsys, monkeypatch, arguments, message):
    monkeypatch.setattr("celosia.commands.common.Progress.__call__", lambda *_: None)
    check_error(capsys, main(arguments.split()), message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run --heads 0", "argument --heads: must be at least 1, not 0"),
        ("run --keys x", "argument --keys: 'x' is not an integer"),
        ("run --seed -1", "argument --seed: must be at least 0, not -1"),
        ("run --device model --config tiny", "--config: not allowed with argument --device"),
        ("run --dev model", "unrecognized arguments: --dev model"),
        ("fly", "invalid choice: 'fly'"),
        ("", "required: COMMAND"),
    ],
)
def test_wrong_usage(capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_:
        main(arguments.split())
    check_error(capsys, exit_.value.code, message)


def test_info(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert "configuration default" in out
    for name, value in (("accumulator", "39"), ("total", "31"), ("peak MACs per clock", "512")):
        assert any(line.split() == [*name.split(), value] for line in out.splitlines())
    assert main(["info", "--config", "tiny"]) == 0
    assert "24" in capsys.readouterr().out


def test_cache(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("CELOSIA_CACHE_DIR", str(tmp_path))
    assert main(["cache"]) == 0
    assert f"0 bytes in 0 files in {tmp_path}" in capsys.readouterr().out
    (tmp_path / "simulation-x.so").write_bytes(bytes(1234))
    assert main(["cache"]) == 0
    assert "1,234 bytes in 1 files" in capsys.readouterr().out
    assert main(["cache", "--clear"]) == 0
    assert "1,234 bytes freed" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"celosia {celosia.__version__}\n"


def test_help_names_the_options(capsys):
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    out = capsys.readouterr().out
    for option in ("device", "config", "input", "heads", "keys", "head-dim", "causal", "output"):
        assert f"--{option}" in out


def test_installed_command():
    command = Path(sys.executable).with_name("celosia")
    arguments = ["run", "--device", "model:tiny", "--queries", "3", "--head-dim", "4", "--json"]
    done = subprocess.run([command, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert math.isfinite(json.loads(done.stdout)["sqnr_db"])
    done = subprocess.run([command, "run", "--device", "x"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_decode(capsys):
    options = "--heads 2 --kv-heads 1 --queries 20 --head-dim 8 --decode 5 --json"
    assert main(["run", "--device", "sim:tiny", *options.split()]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["prefill"], result["steps"], result["model_mismatches"]) == (15, 5, 0)
    assert result["sqnr_db"] > 30
    assert 0 < result["first_step_clocks"] <= result["last_step_clocks"]
    # A key, its value and two queries; the result of 8 of them.
    assert result["step_link_bytes_sent"] == (16 + 4 + 4 + 8 + 8) + (16 + 8 + 8 * 4)
    assert result["step_link_bytes_received"] == 4 + 8 * 8
    assert main(["run", "--device", "model:tiny", "--decode", "5", "--key-length", "3"]) == 2
    assert "--decode goes with" in capsys.readouterr().err
    assert main(["run", "--device", "model:small", "--decode", "128"]) == 2
    assert "steps must be between 1 and 127" in capsys.readouterr().err
