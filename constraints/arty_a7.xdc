# Digilent Arty A7-35T, XC7A35T: pins of the top module, from amaranth-boards.

set_property PACKAGE_PIN E3 [get_ports clk]
set_property IOSTANDARD LVCMOS33 [get_ports clk]
set_property PACKAGE_PIN C2 [get_ports button]
set_property IOSTANDARD LVCMOS33 [get_ports button]
set_property PACKAGE_PIN A9 [get_ports rx]
set_property IOSTANDARD LVCMOS33 [get_ports rx]
set_property PACKAGE_PIN D10 [get_ports tx]
set_property IOSTANDARD LVCMOS33 [get_ports tx]
set_property PACKAGE_PIN H5 [get_ports led_idle]
set_property IOSTANDARD LVCMOS33 [get_ports led_idle]
set_property PACKAGE_PIN J5 [get_ports led_busy]
set_property IOSTANDARD LVCMOS33 [get_ports led_busy]
set_property PACKAGE_PIN T9 [get_ports led_error]
set_property IOSTANDARD LVCMOS33 [get_ports led_error]
create_clock -name clk -period 10 [get_ports clk]

# Asynchronous: two registers follow, or people look at them.
set_false_path -from [get_ports {button rx}]
set_false_path -to [get_ports {tx led_*}]

set_property CFGBVS VCCO [current_design]
set_property CONFIG_VOLTAGE 3.3 [current_design]
