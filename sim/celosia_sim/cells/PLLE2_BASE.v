// SPDX-License-Identifier: BSD-2-Clause
// The PLL of Xilinx' 7 series, as simulations of a board need it: the clock on its pin already has
// the frequency of the output, and the lock comes after some clocks.
module PLLE2_BASE #(
  parameter CLKIN1_PERIOD = 0.0,
  parameter DIVCLK_DIVIDE = 1,
  parameter CLKFBOUT_MULT = 5,
  parameter CLKOUT0_DIVIDE = 1
) (
  input CLKIN1,
  input CLKFBIN,
  input RST,
  input PWRDWN,
  output CLKFBOUT,
  output CLKOUT0,
  output LOCKED
);
  reg [3:0] waited = 0;
  always @(posedge CLKIN1)
    if (RST) waited <= 0;
    else if (!LOCKED) waited <= waited + 1;
  assign CLKFBOUT = CLKIN1;
  assign CLKOUT0 = CLKIN1;
  assign LOCKED = &waited;
endmodule
