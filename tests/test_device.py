"""Opening devices, defaults, and devices that misbehave."""

import contextvars

import numpy as np
import pytest

import celosia
from celosia import AcceleratorConfig, Device, DeviceError, open_device, run_attention
from celosia_hw.config import PRESETS, preset
from celosia_hw.protocol import REPLY_FIELDS, ErrorCode, Opcode, Reply, encode_header
from celosia_sim.model_device import ModelTransport

X = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)


class Wrapped:
    """A model whose replies a test may change."""

    def __init__(self, config, change=lambda reply: reply):
        self.inner = ModelTransport(config)
        self.change = change
        self.closed = 0
        self.clocks = 0

    def exchange(self, commands, replies, progress=None):
        result = [self.change(reply) for reply in self.inner.exchange(commands, replies, progress)]
        if any(command[0] == Opcode.ATTEND for command in commands):
            self.clocks = 1000
        return result

    def close(self):
        self.closed += 1


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name):
    with open_device(f"model:{name}") as device:
        assert device.config == preset(name)
        assert device.version == (0, 1, 0)


def test_the_configuration_is_read_from_the_device():
    for link_bytes in (4, 8, 16, 32, 64):
        config = AcceleratorConfig(
            key_rows=4, query_lanes=4, max_keys=8, link_bytes=link_bytes, normalizer_lanes=1
        )
        with open_device("model", config=config) as device:
            assert device.config == config
            assert run_attention(X, X, X).shape == X.shape


def test_default_preset():
    assert open_device("model").config == preset("default")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "unknown device ''"),
        ("fpga", r"unknown device 'fpga': choose one of sim\[:CONFIG\], model.*pysim.*tiny, small"),
        ("serial", "a serial device needs a port"),
        ("serial:/dev/ttyUSB0@fast", "the baud rate must be a positive number, not 'fast'"),
        ("model:huge", "unknown configuration 'huge': choose one of tiny, small, default"),
        ("model:", "unknown configuration ''"),
        ("sim:huge", "unknown configuration 'huge'"),
    ],
)
def test_unknown_device(spec, message):
    with pytest.raises(ValueError, match=message):
        open_device(spec)
    with pytest.raises(ValueError, match=message):
        run_attention(X, X, X, device=spec)


def test_bad_arguments():
    with pytest.raises(ValueError, match="has a configuration of its own"):
        open_device("serial:/dev/ttyUSB0", config=preset("tiny"))
    with pytest.raises(TypeError, match="not 3"):
        open_device(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="config is given too"):
        open_device("model:tiny", config=preset("tiny"))
    with pytest.raises(ValueError, match="only the device 'sim' writes a waveform"):
        open_device("model", waveform="x.fst")


def test_no_default():
    with pytest.raises(DeviceError, match=r'device="sim".*with celosia\.open_device'):
        run_attention(X, X, X)


def test_the_innermost_default_counts(device_spec):
    with open_device(device_spec) as outer:
        with open_device("model:small") as inner:
            run_attention(X, X, X)
            assert outer.report is None
            assert inner.report is not None
        run_attention(X, X, X)
        assert outer.report is not None
    with pytest.raises(DeviceError, match="no device"):
        run_attention(X, X, X)


def test_a_default_is_not_seen_by_other_contexts(device_spec):
    fresh = contextvars.Context()
    with open_device(device_spec), pytest.raises(DeviceError, match="no device"):
        fresh.run(run_attention, X, X, X)


def test_an_explicit_device_wins(device_spec):
    with open_device(device_spec) as default, open_device("model:small") as other:
        run_attention(X, X, X, device=default)
        assert other.report is None


def test_closing():
    transport = Wrapped(preset("tiny"))
    device = Device(transport)
    device.close()
    device.close()
    assert transport.closed == 1
    with pytest.raises(DeviceError, match="the device is closed"):
        run_attention(X, X, X, device=device)
    with pytest.raises(DeviceError, match="the device is closed"), device:
        pass


def test_a_device_opened_from_a_string_is_closed(monkeypatch):
    closed = []
    monkeypatch.setattr(ModelTransport, "close", lambda self: closed.append(self))
    run_attention(X, X, X, device="model:tiny")
    assert len(closed) == 1
    with pytest.raises(ValueError, match="empty"):
        run_attention(X[:0], X, X, device="model:tiny")
    assert len(closed) == 2


def test_a_block_that_fails_closes_its_device():
    transport = Wrapped(preset("tiny"))
    with pytest.raises(KeyError), Device(transport):
        raise KeyError
    assert transport.closed == 1
    with pytest.raises(DeviceError, match="no device"):
        run_attention(X, X, X)


def test_clocks():
    device = Device(Wrapped(preset("tiny")))
    run_attention(X, X, X, device=device)
    report = device.report
    assert report is not None
    assert report.clocks == 1000
    assert report.utilization == report.useful_macs / (1000 * 2 * 4 * 3)


def test_report(device_spec):
    with open_device(device_spec) as device:
        run_attention(X, X, X, is_causal=True)
    report = device.report
    assert report is not None
    assert report.useful_macs == 2 * (1 + 2 + 3 + 4 + 5) * 16
    # Per head: a LOAD of 2 tiles, 2 ATTENDs; 4 header words each; rows of one 4-byte word for
    # 4 keys or 3 queries, of two for 4 factors or 3 results.
    load, attend = 4 + 2 * (2 + 2 + 8 + 8), 4 + 2 + 8
    assert report.bytes_sent == 2 * 4 * (load + 2 * attend)
    assert report.bytes_received == 2 * 2 * 4 * (1 + 8 * 2)
    assert report.seconds > 0


def test_a_device_without_clocks_has_no_utilization():
    with open_device("model:tiny") as device:
        run_attention(X, X, X)
    assert device.report is not None
    assert device.report.clocks == 0
    assert device.report.utilization is None


def test_nothing_to_compute(device_spec):
    with open_device(device_spec) as device:
        assert not run_attention(X, X, X, key_length=0).any()
    assert device.report is not None
    assert device.report.clocks == device.report.useful_macs == 0


def test_progress(device_spec):
    messages = []
    with open_device(device_spec, progress=messages.append):
        run_attention(X, X, X)
    assert messages[-1] == "4 of 4 query tiles"


def test_other_protocol_version():
    def change(reply):
        return reply[:4] + (9).to_bytes(4, "little") + reply[8:]

    transport = Wrapped(preset("tiny"), change)
    with pytest.raises(DeviceError, match="speaks protocol 9, this driver 2"):
        Device(transport)
    assert transport.closed == 1


@pytest.mark.parametrize("length", [4, 8, 20, 64])
def test_truncated_identity(length):
    with pytest.raises(DeviceError, match="cannot be identified"):
        Device(Wrapped(preset("tiny"), lambda reply: reply[:length]))


def faulty(change):
    """A device that answers attention, and only that, wrongly."""
    return Device(
        Wrapped(preset("tiny"), lambda reply: change(reply) if reply[0] == Reply.RESULT else reply)
    )


def test_error_reply():
    def change(reply):
        code = ErrorCode.TRUNCATED
        return encode_header(REPLY_FIELDS, 4, opcode=Reply.ERROR, tag=reply[1], code=code)

    device = faulty(change)
    with pytest.raises(DeviceError, match=r"error 1 \(TRUNCATED\) for the packet of tag 1"):
        run_attention(X, X, X, device=device)
    with pytest.raises(DeviceError, match="closed"):
        run_attention(X, X, X, device=device)


@pytest.mark.parametrize("byte", [0, 1])
def test_reply_out_of_step(byte):
    def change(reply):
        return reply[:byte] + bytes([reply[byte] ^ 0x20]) + reply[byte + 1 :]

    with pytest.raises(DeviceError, match=r"expected 4 \(RESULT\) and 1"):
        run_attention(X, X, X, device=faulty(change))


def test_truncated_result():
    with pytest.raises(DeviceError, match="result of 64 bytes, expected 68"):
        run_attention(X, X, X, device=faulty(lambda reply: reply[:-4]))


def test_a_silent_device():
    class Silent(Wrapped):
        def exchange(self, commands, replies, progress=None):
            if any(command[0] == Opcode.ATTEND for command in commands):
                raise TimeoutError("no word moved")
            return super().exchange(commands, replies, progress)

    device = Device(Silent(preset("tiny")))
    with pytest.raises(DeviceError, match="does not answer: no word moved"):
        run_attention(X, X, X, device=device)


def test_public_names():
    assert all(hasattr(celosia, name) for name in celosia.__all__)
