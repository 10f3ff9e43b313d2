# Timing constraints of the exported block, `celosia verilog`, for Yosys, OpenSTA and ASIC flows.
# All outputs are registers; inputs pass the logic of TKEEP and a register slice first. What surrounds
# the block sets the delays of its own paths.

create_clock -name aclk -period 10.0 [get_ports aclk]

# Constant ones.
set_false_path -to [get_ports m_axis_tkeep*]
