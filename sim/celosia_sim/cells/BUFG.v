// SPDX-License-Identifier: BSD-2-Clause
// A global clock buffer of Xilinx.
module BUFG (
  input I,
  output O
);
  assign O = I;
endmodule
