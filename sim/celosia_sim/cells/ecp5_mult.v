// Behaviour of the ECP5's MULT18X18D as `celosia_hw.multiplier` uses it: operand registers with a
// clock enable each, pipeline and output register, one clock, no resets, no cascade.
module MULT18X18D (
  input A0, A1, A2, A3, A4, A5, A6, A7, A8, A9, A10, A11, A12, A13, A14, A15, A16, A17,
  input B0, B1, B2, B3, B4, B5, B6, B7, B8, B9, B10, B11, B12, B13, B14, B15, B16, B17,
  input SIGNEDA, SIGNEDB, SOURCEA, SOURCEB, CLK0, CE0, CE1, CE2, RST0,
  output P0, P1, P2, P3, P4, P5, P6, P7, P8, P9, P10, P11, P12, P13, P14, P15, P16, P17,
  output P18, P19, P20, P21, P22, P23, P24, P25, P26, P27, P28, P29, P30, P31, P32, P33, P34, P35
);
  parameter REG_INPUTA_CLK = "NONE", REG_INPUTA_CE = "CE0", REG_INPUTA_RST = "RST0";
  parameter REG_INPUTB_CLK = "NONE", REG_INPUTB_CE = "CE0", REG_INPUTB_RST = "RST0";
  parameter REG_PIPELINE_CLK = "NONE", REG_PIPELINE_CE = "CE0", REG_PIPELINE_RST = "RST0";
  parameter REG_OUTPUT_CLK = "NONE", REG_OUTPUT_CE = "CE0", REG_OUTPUT_RST = "RST0";
  parameter GSR = "ENABLED", RESETMODE = "SYNC";

  wire [17:0] a = {A17, A16, A15, A14, A13, A12, A11, A10, A9, A8, A7, A6, A5, A4, A3, A2, A1, A0};
  wire [17:0] b = {B17, B16, B15, B14, B13, B12, B11, B10, B9, B8, B7, B6, B5, B4, B3, B2, B1, B0};
  wire enable_a = REG_INPUTA_CE == "CE1" ? CE1 : CE0;
  wire enable_b = REG_INPUTB_CE == "CE2" ? CE2 : CE0;
  reg [17:0] a_register = 0, b_register = 0;
  always @(posedge CLK0) begin
    if (enable_a) a_register <= a;
    if (enable_b) b_register <= b;
  end
  wire [17:0] x = REG_INPUTA_CLK == "CLK0" ? a_register : a;
  wire [17:0] y = REG_INPUTB_CLK == "CLK0" ? b_register : b;

  // As wide as the product, so that it is exact for either kind of operand.
  wire signed [35:0] wide_x = {{18{SIGNEDA & x[17]}}, x};
  wire signed [35:0] wide_y = {{18{SIGNEDB & y[17]}}, y};
  wire [35:0] product = wide_x * wide_y;
  reg [35:0] pipeline = 0, result = 0;
  wire [35:0] middle = REG_PIPELINE_CLK == "CLK0" ? pipeline : product;
  always @(posedge CLK0) if (CE0) begin
    pipeline <= product;
    result <= middle;
  end
  assign {P35, P34, P33, P32, P31, P30, P29, P28, P27, P26, P25, P24, P23, P22, P21, P20, P19, P18,
          P17, P16, P15, P14, P13, P12, P11, P10, P9, P8, P7, P6, P5, P4, P3, P2, P1, P0} =
    REG_OUTPUT_CLK == "CLK0" ? result : middle;
endmodule
