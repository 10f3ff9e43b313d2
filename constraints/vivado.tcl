# Synthesis, placement and routing of the exported block in Vivado, out of context:
#
#   celosia verilog --config small -o block
#   vivado -mode batch -source constraints/vivado.tcl -tclargs block celosia xc7a100tcsg324-1
#
# Not run by this project's tests, which have no Vivado.

lassign $argv folder top part
read_verilog [file join $folder $top.v]
read_xdc [file join [file dirname [info script]] celosia.xdc]
synth_design -top $top -part $part -mode out_of_context
opt_design
place_design
phys_opt_design
route_design
report_utilization -hierarchical -file [file join $folder utilization.txt]
report_timing_summary -file [file join $folder timing.txt]
if {[get_property SLACK [get_timing_paths]] < 0 || [get_property SLACK [get_timing_paths -hold]] < 0} {
  puts "ERROR: timing is not met"
  exit 1
}
