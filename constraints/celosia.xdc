# Timing constraints of the exported block, `celosia verilog`, for Vivado; see vivado.tcl.

create_clock -name aclk -period 10.0 [get_ports aclk]

# Constant ones.
set_false_path -to [get_ports m_axis_tkeep*]
