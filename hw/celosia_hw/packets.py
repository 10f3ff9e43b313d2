"""The payload of the command and result streams, and headers as gateware layouts."""

from __future__ import annotations

from collections.abc import Mapping

from amaranth.hdl import signed
from amaranth.lib import data

from .config import AcceleratorConfig
from .protocol import SIGNED_FIELDS

__all__ = ["CommandWord", "PacketWord", "header_layout"]


class PacketWord(data.StructLayout):
    """A word of a packet, or of a frame.

    Parameters
    ----------
    link_bytes : int

    Members
    -------
    data : unsigned
        `link_bytes` bytes, the first in the least significant bits.
    last : 1
        The packet's last word.
    """

    def __init__(self, link_bytes: int) -> None:
        super().__init__({"data": 8 * link_bytes, "last": 1})


class CommandWord(data.StructLayout):
    """A word of a command's packet.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    data, last
        As in `PacketWord`.
    bad : 1
        Bytes that the word must have are missing.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        super().__init__({"data": config.link_bits, "last": 1, "bad": 1})


def header_layout(fields: Mapping[str, int]) -> data.StructLayout:
    """A protocol header as a layout."""
    return data.StructLayout(
        {name: signed(bits) if name in SIGNED_FIELDS else bits for name, bits in fields.items()}
    )
