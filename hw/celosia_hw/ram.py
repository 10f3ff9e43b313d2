"""Memories: which of them are block RAM, and the Verilog module of each."""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import ClockSignal, Instance, Module, Shape, ShapeLike, Value
from amaranth.lib import memory

__all__ = ["BLOCK_BITS", "BLOCK_DEPTH", "RamShape", "instance", "ram", "ram_verilog"]

BLOCK_BITS, BLOCK_DEPTH = 2048, 32
"""From this size and depth on a memory is block RAM; smaller ones may be made of LUTs."""


def ram(shape: ShapeLike, depth: int) -> memory.Memory:
    """A memory that is block RAM if it is large; its read port must be synchronous.

    Parameters
    ----------
    shape : ShapeLike
        Of a row.
    depth : int
        Rows.
    """
    is_block = _is_block(depth, Shape.cast(shape).width)
    attributes = {"ram_style": "block"} if is_block else {}
    return memory.Memory(shape=shape, depth=depth, init=[], attrs=attributes)


@dataclass(frozen=True)
class RamShape:
    """What a memory's Verilog module is made for.

    Attributes
    ----------
    name : str
    depth, width, part : int
        Words, bits of a word, and bits of each part that is written by itself.
    is_clocked : bool
        Whether a word is read a clock after its address, else in the same clock.
    """

    name: str
    depth: int
    width: int
    part: int
    is_clocked: bool

    @property
    def is_block(self) -> bool:
        """Whether it is block RAM."""
        return self.is_clocked and _is_block(self.depth, self.width)


def instance(store: memory.Memory, prefix: str) -> tuple[RamShape, Module]:
    """A memory as an instance of a Verilog module, which memories of one shape share.

    Parameters
    ----------
    store : Memory
        With one write and one read port.
    prefix : str
        Of the module's name.
    """
    (write,), (read,) = store.write_ports, store.read_ports
    if read.transparent_for:
        raise NotImplementedError("a memory that reads what is written in the same clock")
    width, parts = Shape.cast(store.shape).width, len(write.en)
    is_clocked = read.domain != "comb"
    name = f"{prefix}_ram_{store.depth}x{width}"
    name += (f"_by{width // parts}" if parts > 1 else "") + ("" if is_clocked else "_comb")
    shape = RamShape(name, store.depth, width, width // parts, is_clocked)
    ports = {"i_read_en": read.en} if is_clocked else {}
    m = Module()
    m.submodules.ram = Instance(
        name,
        i_clk=ClockSignal(write.domain),
        i_write_addr=write.addr,
        i_write_data=Value.cast(write.data),
        i_write_en=write.en,
        i_read_addr=read.addr,
        o_read_data=Value.cast(read.data),
        **ports,
    )
    return shape, m


def ram_verilog(shape: RamShape) -> str:
    """The Verilog module of a memory; a macro of its name leaves it out."""
    depth, width, part = shape.depth, shape.width, shape.part
    address, parts = (depth - 1).bit_length(), width // part
    style, block = "", 'ram_style = "block", ' if shape.is_block else ""
    written = "" if parts == 1 else f", written in parts of {part} bits"
    if shape.is_clocked:
        latency = (
            "read_data follows read_addr by one clock if read_en is set, else it stays;\n"
            "// what is read while it is written is unspecified."
        )
        ports = f"  input [{address - 1}:0] read_addr,\n  input read_en,\n"
        ports += f"  output reg [{width - 1}:0] read_data\n"
        # Where the order does not matter, Yosys builds no bypass around the block RAM.
        style = f"(* {block}no_rw_check *) "
        enable = f"{'|' if parts > 1 else ''}write_en"
        read = (
            "    if (read_en) read_data <= words[read_addr];\n"
            "`ifndef SYNTHESIS\n"
            f"    if (read_en && {enable} && read_addr == write_addr)\n"
            f"      read_data <= {{{width}{{1'bx}}}};\n"
            "`endif\n"
        )
    else:
        latency = "read_data follows read_addr at once."
        ports = f"  input [{address - 1}:0] read_addr,\n  output [{width - 1}:0] read_data\n"
        read = ""
    if parts == 1:
        write = "    if (write_en) words[write_addr] <= write_data;\n"
    else:
        place = f"[part * {part} +: {part}]"
        write = (
            f"    for (part = 0; part < {parts}; part = part + 1)\n"
            "      if (write_en[part])\n"
            f"        words[write_addr]{place} <= write_data{place};\n"
        )
    return (
        f"// {depth} words of {width} bits{written}; {latency}\n"
        f"`ifndef {shape.name}\n"
        f"module {shape.name} (\n"
        "  input clk,\n"
        f"  input [{address - 1}:0] write_addr,\n"
        f"  input [{width - 1}:0] write_data,\n"
        f"  input {f'[{parts - 1}:0] ' if parts > 1 else ''}write_en,\n"
        f"{ports});\n"
        f"  {style}reg [{width - 1}:0] words [0:{depth - 1}];\n"
        f"{'' if parts == 1 else '  integer part;' + chr(10)}"
        "`ifndef SYNTHESIS\n"
        "  integer i;\n"
        "  initial\n"
        f"    for (i = 0; i < {depth}; i = i + 1) words[i] = 0;\n"
        "`endif\n"
        "  always @(posedge clk) begin\n"
        f"{write}{read}"
        "  end\n"
        f"{'' if shape.is_clocked else '  assign read_data = words[read_addr];' + chr(10)}"
        "endmodule\n"
        "`endif\n"
    )


def _is_block(depth: int, width: int) -> bool:
    return depth >= BLOCK_DEPTH and depth * width >= BLOCK_BITS
