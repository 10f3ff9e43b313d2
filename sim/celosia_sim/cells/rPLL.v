// SPDX-License-Identifier: BSD-2-Clause
// Gowin's PLL, as simulations of a board need it: the clock on its pin already has the frequency of
// the output, and the lock comes after some clocks.
module rPLL #(
  parameter FCLKIN = "100.0",
  parameter DEVICE = "",
  parameter IDIV_SEL = 0,
  parameter FBDIV_SEL = 0,
  parameter ODIV_SEL = 8
) (
  input CLKIN,
  input CLKFB,
  input RESET,
  input RESET_P,
  input [5:0] FBDSEL,
  input [5:0] IDSEL,
  input [5:0] ODSEL,
  input [3:0] PSDA,
  input [3:0] DUTYDA,
  input [3:0] FDLY,
  output CLKOUT,
  output LOCK
);
  reg [3:0] waited = 0;
  always @(posedge CLKIN)
    if (RESET) waited <= 0;
    else if (!LOCK) waited <= waited + 1;
  assign CLKOUT = CLKIN;
  assign LOCK = &waited;
endmodule
