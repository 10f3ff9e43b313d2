"""Boards at a serial port: what only they have, and what goes wrong with them."""

import contextlib
import dataclasses
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from fractions import Fraction

import numpy as np
import pytest

import celosia
from celosia import cli, link_faults, run_attention, serial_link
from celosia.commands.inputs import Input
from celosia.device import DeviceError, VersionMismatch, open_device
from celosia.link_overhead import format_overheads, measure
from celosia.serial_link import BoardReset, CableLost, DeviceBusy, LinkTimeout
from celosia.serial_transport import DEFAULT_BAUD, SerialTransport, parse_port
from celosia_hw.boards import BOARDS
from celosia_hw.config import preset
from celosia_hw.link_protocol import LinkConfig
from celosia_sim.board import board_design, plain_board
from celosia_sim.board_tops import real_board
from celosia_sim.faults import FaultyLine
from celosia_sim.virtual_board import Line, VirtualBoard
from conftest import LINK

X = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
LONG = np.random.default_rng(1).normal(size=(2, 40, 10)).astype(np.float32)


class Scripted(Line):
    """Lets a test act on the board, and count or cut what passes."""

    def __init__(self):
        self.actions = []
        self.is_cut = False

    def to_board(self, data):
        return b"" if self.is_cut else data

    def to_host(self, data):
        return b"" if self.is_cut else data

    def step(self, board):
        while self.actions:
            self.actions.pop()(board)

    def do(self, action):
        self.actions.append(action)
        while self.actions:
            time.sleep(0.001)


@pytest.fixture
def scripted():
    line = Scripted()
    with VirtualBoard(plain_board(preset("tiny"), LINK, clocks_per_bit=2), line) as board:
        yield board.path, line


@pytest.mark.parametrize(
    ("text", "port", "baud"),
    [
        ("/dev/ttyUSB0", "/dev/ttyUSB0", DEFAULT_BAUD),
        ("/dev/ttyUSB0@115200", "/dev/ttyUSB0", 115200),
        ("COM3@9600", "COM3", 9600),
        ("socket://me@host:5000", "socket://me@host:5000", DEFAULT_BAUD),
        ("rfc2217://host:5000/x@9600", "rfc2217://host:5000/x", 9600),
        ("/dev/serial/by-id/usb-a@b/c", "/dev/serial/by-id/usb-a@b/c", DEFAULT_BAUD),
    ],
)
def test_ports(text, port, baud):
    assert parse_port(text) == (port, baud)


@pytest.mark.parametrize("text", ["", "@9600", "/dev/ttyUSB0@0", "/dev/ttyUSB0@-3", "/dev/tty@"])
def test_bad_ports(text):
    with pytest.raises(ValueError, match=r"needs a port|must be a positive number"):
        parse_port(text)


def test_no_such_port():
    with pytest.raises(DeviceError, match="/dev/ttyNONE cannot be opened: there is no such port"):
        open_device("serial:/dev/ttyNONE")


def test_true_baud_rate():
    """The ULX3S with the link it is shipped with: 3 Mbaud from 100 MHz, 33 1/3 clocks a bit."""
    design = real_board(dataclasses.replace(BOARDS["ulx3s"], config=preset("tiny")))
    assert design.clocks_per_bit == Fraction(100, 3)
    with VirtualBoard(design) as board, open_device(f"serial:{board.path}") as device:
        result = run_attention(X, X, X)
        assert device.config == preset("tiny")
    np.testing.assert_array_equal(result, run_attention(X, X, X, device="model:tiny"))


def test_a_port_is_locked(virtual_board):
    spec = f"serial:{virtual_board.path}"
    with open_device(spec), pytest.raises(DeviceBusy, match="is in use by another process"):
        open_device(spec)
    open_device(spec).close()


def test_packets_that_cannot_be_sent(virtual_board):
    transport = SerialTransport(virtual_board.path)
    with pytest.raises(ValueError, match="packet 1 is empty"):
        transport.exchange([b"\1" * 16, b""], 0)
    identify = b"\1\1" + bytes(14)
    (reply,) = transport.exchange([identify, b"\1\2" + bytes(14)], 1)
    assert reply[:2] == b"\1\1"
    (other,) = transport.exchange([], 1)
    assert other[:2] == b"\1\2"
    transport.close()
    transport.close()
    with pytest.raises(DeviceError, match="is closed; open it again"):
        transport.exchange([identify], 1)


def test_replies_come_while_commands_go_out(virtual_board):
    """More replies than both ends could hold, in one exchange."""
    seen = []
    transport = SerialTransport(virtual_board.path)
    commands = [bytes([1, n % 256]) + bytes(14) for n in range(300)]
    replies = transport.exchange(commands, 300, seen.append)
    transport.close()
    assert [reply[1] for reply in replies] == [n % 256 for n in range(300)]
    assert LINK.frames * LINK.frame_bytes < 300 * 72
    assert seen[-1] == 300


def run_forever():
    while True:
        run_attention(LONG, LONG, LONG)


def test_interruption_leaves_the_device_usable(virtual_board):
    """Ctrl-C in the middle of a run."""
    expected = run_attention(LONG, LONG, LONG, device="model:tiny")
    with open_device(f"serial:{virtual_board.path}"):
        for delay in (0.02, 0.15):
            threading.Timer(delay, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
            with pytest.raises(KeyboardInterrupt):
                run_forever()
            np.testing.assert_array_equal(run_attention(LONG, LONG, LONG), expected)


@pytest.mark.parametrize("how", ["reset", "send_break"])
def test_a_board_that_was_reset(scripted, how):
    path, line = scripted
    device = open_device(f"serial:{path}")
    run_attention(X, X, X, device=device)
    line.do(lambda board: getattr(board, how)())
    with pytest.raises(BoardReset, match="the board was reset; open it again"):
        run_attention(X, X, X, device=device)
    with pytest.raises(DeviceError, match="closed; open it again"):
        run_attention(X, X, X, device=device)
    with open_device(f"serial:{path}") as again:
        run_attention(X, X, X, device=again)


def test_silence(scripted):
    path, line = scripted
    transport = SerialTransport(path, timeout=0.3)
    device = celosia.Device(transport)
    line.is_cut = True
    with pytest.raises(LinkTimeout, match=r"nothing went on for 0.3 s: 0 of 1 packets delivered"):
        run_attention(X, X, X, device=device)
    with pytest.raises(LinkTimeout, match="nothing answers at 3000000 baud"):
        SerialTransport(path, open_timeout=0.3)
    line.is_cut = False
    with open_device(f"serial:{path}") as again:
        run_attention(X, X, X, device=again)


def test_a_lost_cable():
    board = VirtualBoard(plain_board(preset("tiny"), LINK, clocks_per_bit=2))
    with board:
        device = open_device(f"serial:{board.path}")
        run_attention(X, X, X, device=device)
    with pytest.raises(CableLost, match="is gone"):
        run_attention(X, X, X, device=device)


def test_a_cable_that_is_plugged_in_again():
    """The board has gone on, in the middle of a session, and takes a new one."""
    line = Scripted()
    with VirtualBoard(plain_board(preset("tiny"), LINK, clocks_per_bit=2), line) as board:
        device = open_device(f"serial:{board.path}")
        expected = run_attention(X, X, X, device=device)
        clocks = board.board.clocks
        line.do(lambda _: board.replug())
        with pytest.raises(CableLost, match="is gone"):
            run_attention(X, X, X, device=device)
        with open_device(f"serial:{board.path}") as again:
            np.testing.assert_array_equal(run_attention(X, X, X, device=again), expected)
        assert board.board.clocks > clocks


def test_another_version(virtual_board, monkeypatch):
    monkeypatch.setattr(serial_link, "LINK_VERSION", 9)
    with pytest.raises(VersionMismatch, match="link is of version 1, this driver's of 9"):
        open_device(f"serial:{virtual_board.path}")
    monkeypatch.undo()
    open_device(f"serial:{virtual_board.path}").close()


def test_another_protocol(virtual_board, monkeypatch):
    monkeypatch.setattr("celosia_hw.protocol.PROTOCOL_VERSION", 9)
    with pytest.raises(VersionMismatch, match="the device speaks protocol 2, this driver 9"):
        open_device(f"serial:{virtual_board.path}")


def test_something_else_that_talks():
    """A device that sends text and knows nothing of frames."""
    master, slave = os.openpty()
    os.write(master, b"Marlin 2.1 ready\r\n" * 9)
    stop = threading.Event()

    def talk():
        while not stop.wait(0.05):
            os.write(master, b"T:21.0 B:22.0\r\n")

    thread = threading.Thread(target=talk)
    thread.start()
    try:
        with pytest.raises(LinkTimeout, match=r"bytes arrived at 3000000 baud, but no answer"):
            SerialTransport(os.ttyname(slave), open_timeout=0.4)
    finally:
        stop.set()
        thread.join()
        os.close(master)
        os.close(slave)


def test_over_a_socket(virtual_board):
    """pyserial's URLs, as they go to a terminal server."""
    server = socket.create_server(("127.0.0.1", 0))
    port = os.open(virtual_board.path, os.O_RDWR | os.O_NOCTTY)
    stop = threading.Event()

    def copy(read, write):
        with contextlib.suppress(OSError):
            while not stop.is_set():
                data = read()
                if not data:
                    return
                write(data)

    def serve():
        connection, _ = server.accept()
        os.set_blocking(port, False)

        def read_port():
            while not stop.is_set():
                if select.select([port], [], [], 0.05)[0]:
                    return os.read(port, 4096)
            return b""

        def write_port(data):
            while data:
                with contextlib.suppress(BlockingIOError):
                    data = data[os.write(port, data) :]

        down = threading.Thread(target=copy, args=(read_port, connection.sendall))
        down.start()
        copy(lambda: connection.recv(4096), write_port)
        down.join()
        connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        url = f"serial:socket://127.0.0.1:{server.getsockname()[1]}"
        with open_device(url) as device:
            result = run_attention(X, X, X, device=device)
    finally:
        stop.set()
        thread.join(5)
        server.close()
        os.close(port)
    np.testing.assert_array_equal(result, run_attention(X, X, X, device="model:tiny"))


def test_faults():
    """A sample of the runs that docs/link.md records: each scenario twice."""
    outcomes = list(link_faults.run_faults(range(2 * len(link_faults.SCENARIOS))))
    assert [outcome for outcome in outcomes if not outcome.is_good] == []
    assert {outcome.scenario for outcome in outcomes} == set(link_faults.SCENARIOS)
    for kind in ("flip", "drop", "duplicate"):
        some = [outcome for outcome in outcomes if outcome.scenario == kind]
        assert all(outcome.result == "right" and outcome.faults for outcome in some)
    assert sum(outcome.repeated for outcome in outcomes) > 0
    assert "| all runs | 22 |" in link_faults.summary(outcomes)


def test_a_fault_of_another_kind():
    with pytest.raises(ValueError, match="kinds must be some of flip, drop"):
        FaultyLine(("flip", "fire"), 100, 0)
    with pytest.raises(ValueError, match="distance must be at least 1, not 0"):
        FaultyLine(("flip",), 0, 0)


def test_overhead():
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 1, 60, 10)).astype(np.float32)
    overhead = measure(Input("random", q, k, v, {"is_causal": False}), preset("tiny"))
    assert overhead.mismatches == 0
    assert overhead.tensor_bytes == 5 * q.size
    # The link adds a header and little more to the packets' own padding.
    assert 1 < overhead.line_bytes / overhead.packet_bytes < 1.1
    assert "| random | 1, 1 | 60 x 60 | 10 | 3,000 |" in format_overheads([overhead])


def test_commands(virtual_board, capsys):
    spec = f"serial:{virtual_board.path}"
    sizes = ["--queries", "9", "--keys", "12", "--head-dim", "8"]
    assert cli.main(["run", "--device", spec, *sizes]) == 0
    table = capsys.readouterr().out
    assert re.search(r"^mismatches, integer model +0$", table, re.M)
    assert re.search(r"^time +\d+\.\d+ s", table, re.M)
    assert cli.main(["devices", virtual_board.path, "/dev/ttyNONE"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(spec)
    assert "4 x 3, version 0.1.0" in lines[0]
    assert "no such port" in lines[1]
    assert cli.main(["devices", "/dev/tty@fast", spec]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "the baud rate must be a positive number" in lines[0]
    assert "4 x 3, version 0.1.0" in lines[1]
    assert cli.main(["run", "--device", "serial:/dev/ttyNONE", *sizes]) == 2
    assert "no such port" in capsys.readouterr().err


def test_board_names():
    with pytest.raises(ValueError, match=r"unknown board .tinny.: choose one of ulx3s, .*, tiny"):
        board_design("tinny")


def test_board_sim():
    """The command serves until it is interrupted."""
    command = [sys.executable, "-m", "celosia", "board-sim", "tiny"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        path = process.stdout.readline().strip()
        try:
            with open_device(f"serial:{path}") as device:
                run_attention(X, X, X, device=device)
                process.send_signal(signal.SIGINT)
                assert process.wait(30) == 0
                with pytest.raises(CableLost):
                    run_attention(X, X, X, device=device)
        finally:
            process.kill()


def test_a_board_that_fails_is_told():
    class Failing(Line):
        def step(self, board):
            raise ArithmeticError("broken")

    design = plain_board(preset("tiny"), LinkConfig(8, 256, 4096), clocks_per_bit=2)
    with (
        pytest.raises(RuntimeError, match="the virtual board failed"),
        VirtualBoard(design, Failing()) as board,
    ):
        assert board.path
