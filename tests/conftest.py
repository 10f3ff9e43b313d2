"""Devices that tests of the driver run on, all with the configuration "tiny"."""

import dataclasses

import pytest

from celosia_hw.boards import BOARDS
from celosia_hw.config import preset
from celosia_hw.link_protocol import LinkConfig
from celosia_sim.board_tops import real_board
from celosia_sim.virtual_board import VirtualBoard

LINK = LinkConfig(frames=8, frame_bytes=256, retry_characters=4096)
ULX3S = BOARDS["ulx3s"]
# Two clocks a bit: a fast line makes tests quick.
BOARD = dataclasses.replace(ULX3S, config=preset("tiny"), link=LINK, baud=ULX3S.clock_hz // 2)


@pytest.fixture(scope="session")
def virtual_board():
    """The ULX3S's top module, with a small accelerator, at a pseudo-terminal."""
    with VirtualBoard(real_board(BOARD)) as board:
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
