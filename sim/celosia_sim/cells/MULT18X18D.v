// SPDX-License-Identifier: BSD-2-Clause
// The ECP5's 18 x 18 multiplier with its registers, as far as celosia_hw.multiplier uses it: one
// clock, no cascades, no reset.
module MULT18X18D #(
  parameter REG_INPUTA_CLK = "NONE",
  parameter REG_INPUTA_CE = "CE0",
  parameter REG_INPUTA_RST = "RST0",
  parameter REG_INPUTB_CLK = "NONE",
  parameter REG_INPUTB_CE = "CE0",
  parameter REG_INPUTB_RST = "RST0",
  parameter REG_PIPELINE_CLK = "NONE",
  parameter REG_PIPELINE_CE = "CE0",
  parameter REG_PIPELINE_RST = "RST0",
  parameter REG_OUTPUT_CLK = "NONE",
  parameter REG_OUTPUT_CE = "CE0",
  parameter REG_OUTPUT_RST = "RST0",
  parameter GSR = "ENABLED",
  parameter RESETMODE = "SYNC"
) (
  input A17, A16, A15, A14, A13, A12, A11, A10, A9, A8, A7, A6, A5, A4, A3, A2, A1, A0,
  input B17, B16, B15, B14, B13, B12, B11, B10, B9, B8, B7, B6, B5, B4, B3, B2, B1, B0,
  input SIGNEDA, SIGNEDB, SOURCEA, SOURCEB,
  input CLK0, CE0, CE1, CE2, RST0,
  output P35, P34, P33, P32, P31, P30, P29, P28, P27, P26, P25, P24, P23, P22, P21, P20, P19, P18,
  P17, P16, P15, P14, P13, P12, P11, P10, P9, P8, P7, P6, P5, P4, P3, P2, P1, P0
);
  wire [17:0] a = {A17, A16, A15, A14, A13, A12, A11, A10, A9, A8, A7, A6, A5, A4, A3, A2, A1, A0};
  wire [17:0] b = {B17, B16, B15, B14, B13, B12, B11, B10, B9, B8, B7, B6, B5, B4, B3, B2, B1, B0};
  reg [17:0] a_register = 0, b_register = 0;
  reg [35:0] pipeline = 0, out = 0;
  wire a_enable = REG_INPUTA_CE == "CE1" ? CE1 : REG_INPUTA_CE == "CE2" ? CE2 : CE0;
  wire b_enable = REG_INPUTB_CE == "CE1" ? CE1 : REG_INPUTB_CE == "CE2" ? CE2 : CE0;
  wire [17:0] x = REG_INPUTA_CLK == "NONE" ? a : a_register;
  wire [17:0] y = REG_INPUTB_CLK == "NONE" ? b : b_register;
  wire signed [37:0] product =
    $signed({SIGNEDA & x[17], x}) * $signed({SIGNEDB & y[17], y});
  wire [35:0] summed = REG_PIPELINE_CLK == "NONE" ? product[35:0] : pipeline;
  always @(posedge CLK0) begin
    if (a_enable) a_register <= a;
    if (b_enable) b_register <= b;
    if (CE0) pipeline <= product[35:0];
    if (CE0) out <= summed;
  end
  assign {P35, P34, P33, P32, P31, P30, P29, P28, P27, P26, P25, P24, P23, P22, P21, P20, P19,
    P18, P17, P16, P15, P14, P13, P12, P11, P10, P9, P8, P7, P6, P5, P4, P3, P2, P1, P0} =
    REG_OUTPUT_CLK == "NONE" ? summed : out;
endmodule
