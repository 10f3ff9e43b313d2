// SPDX-License-Identifier: BSD-2-Clause
// The ECP5's PLL, as simulations of a board need it: the clock on its pin already has the frequency
// of the output, and the lock comes after some clocks.
module EHXPLLL #(
  parameter CLKI_DIV = 1,
  parameter CLKFB_DIV = 1,
  parameter CLKOP_DIV = 8,
  parameter CLKOP_CPHASE = 0,
  parameter CLKOP_ENABLE = "ENABLED",
  parameter FEEDBK_PATH = "CLKOP"
) (
  input CLKI,
  input CLKFB,
  input RST,
  input STDBY,
  input ENCLKOP,
  input PLLWAKESYNC,
  input PHASESEL0,
  input PHASESEL1,
  input PHASEDIR,
  input PHASESTEP,
  input PHASELOADREG,
  output CLKOP,
  output LOCK
);
  reg [3:0] waited = 0;
  always @(posedge CLKI)
    if (RST) waited <= 0;
    else if (!LOCK) waited <= waited + 1;
  assign CLKOP = CLKI;
  assign LOCK = &waited;
endmodule
