"""Devices that tests of the driver run on, all with the configuration "tiny"."""

import pytest

from celosia_hw.config import preset
from celosia_hw.link_protocol import LinkConfig
from celosia_sim.board import plain_board
from celosia_sim.virtual_board import VirtualBoard

LINK = LinkConfig(frames=8, frame_bytes=256, retry_characters=4096)


@pytest.fixture(scope="session")
def virtual_board():
    """A board at a pseudo-terminal; its line is fast, so that tests are quick."""
    with VirtualBoard(plain_board(preset("tiny"), LINK, clocks_per_bit=2)) as board:
        yield board


@pytest.fixture(params=["sim", "board"])
def hardware(request):
    """What `open_device` takes: a simulated accelerator, by itself and on a board."""
    if request.param == "sim":
        return "sim:tiny"
    return f"serial:{request.getfixturevalue('virtual_board').path}"


@pytest.fixture(params=["model", "sim", "board"])
def device_spec(request):
    """What `open_device` takes: every kind of device."""
    if request.param == "board":
        return f"serial:{request.getfixturevalue('virtual_board').path}"
    return f"{request.param}:tiny"
