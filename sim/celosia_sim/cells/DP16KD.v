// SPDX-License-Identifier: BSD-2-Clause
// The ECP5's block RAM as Yosys uses it: port A writes or reads, port B too, without output
// registers; with a width of 36 port A writes with both ports' data and port B reads to both ports'.
// It holds 1024 words of two 9-bit bytes; widths up to 4 leave the ninth bits out.
module DP16KD #(
  parameter DATA_WIDTH_A = 18,
  parameter DATA_WIDTH_B = 18,
  parameter REGMODE_A = "NOREG",
  parameter REGMODE_B = "NOREG",
  parameter RESETMODE = "SYNC",
  parameter ASYNC_RESET_RELEASE = "SYNC",
  parameter CSDECODE_A = "0b000",
  parameter CSDECODE_B = "0b000",
  parameter CLKAMUX = "CLKA",
  parameter CLKBMUX = "CLKB",
  parameter WRITEMODE_A = "NORMAL",
  parameter WRITEMODE_B = "NORMAL",
  parameter INITVAL_00 = 320'b0, INITVAL_01 = 320'b0, INITVAL_02 = 320'b0, INITVAL_03 = 320'b0,
  parameter INITVAL_04 = 320'b0, INITVAL_05 = 320'b0, INITVAL_06 = 320'b0, INITVAL_07 = 320'b0,
  parameter INITVAL_08 = 320'b0, INITVAL_09 = 320'b0, INITVAL_0A = 320'b0, INITVAL_0B = 320'b0,
  parameter INITVAL_0C = 320'b0, INITVAL_0D = 320'b0, INITVAL_0E = 320'b0, INITVAL_0F = 320'b0,
  parameter INITVAL_10 = 320'b0, INITVAL_11 = 320'b0, INITVAL_12 = 320'b0, INITVAL_13 = 320'b0,
  parameter INITVAL_14 = 320'b0, INITVAL_15 = 320'b0, INITVAL_16 = 320'b0, INITVAL_17 = 320'b0,
  parameter INITVAL_18 = 320'b0, INITVAL_19 = 320'b0, INITVAL_1A = 320'b0, INITVAL_1B = 320'b0,
  parameter INITVAL_1C = 320'b0, INITVAL_1D = 320'b0, INITVAL_1E = 320'b0, INITVAL_1F = 320'b0,
  parameter INITVAL_20 = 320'b0, INITVAL_21 = 320'b0, INITVAL_22 = 320'b0, INITVAL_23 = 320'b0,
  parameter INITVAL_24 = 320'b0, INITVAL_25 = 320'b0, INITVAL_26 = 320'b0, INITVAL_27 = 320'b0,
  parameter INITVAL_28 = 320'b0, INITVAL_29 = 320'b0, INITVAL_2A = 320'b0, INITVAL_2B = 320'b0,
  parameter INITVAL_2C = 320'b0, INITVAL_2D = 320'b0, INITVAL_2E = 320'b0, INITVAL_2F = 320'b0,
  parameter INITVAL_30 = 320'b0, INITVAL_31 = 320'b0, INITVAL_32 = 320'b0, INITVAL_33 = 320'b0,
  parameter INITVAL_34 = 320'b0, INITVAL_35 = 320'b0, INITVAL_36 = 320'b0, INITVAL_37 = 320'b0,
  parameter INITVAL_38 = 320'b0, INITVAL_39 = 320'b0, INITVAL_3A = 320'b0, INITVAL_3B = 320'b0,
  parameter INITVAL_3C = 320'b0, INITVAL_3D = 320'b0, INITVAL_3E = 320'b0, INITVAL_3F = 320'b0,
  parameter GSR = "ENABLED"
) (
  input DIA17, DIA16, DIA15, DIA14, DIA13, DIA12, DIA11, DIA10, DIA9, DIA8, DIA7, DIA6, DIA5,
    DIA4, DIA3, DIA2, DIA1, DIA0,
  input ADA13, ADA12, ADA11, ADA10, ADA9, ADA8, ADA7, ADA6, ADA5, ADA4, ADA3, ADA2, ADA1, ADA0,
  input CEA, OCEA, CLKA, WEA, RSTA, CSA0, CSA1, CSA2,
  output DOA17, DOA16, DOA15, DOA14, DOA13, DOA12, DOA11, DOA10, DOA9, DOA8, DOA7, DOA6, DOA5,
    DOA4, DOA3, DOA2, DOA1, DOA0,
  input DIB17, DIB16, DIB15, DIB14, DIB13, DIB12, DIB11, DIB10, DIB9, DIB8, DIB7, DIB6, DIB5,
    DIB4, DIB3, DIB2, DIB1, DIB0,
  input ADB13, ADB12, ADB11, ADB10, ADB9, ADB8, ADB7, ADB6, ADB5, ADB4, ADB3, ADB2, ADB1, ADB0,
  input CEB, OCEB, CLKB, WEB, RSTB, CSB0, CSB1, CSB2,
  output DOB17, DOB16, DOB15, DOB14, DOB13, DOB12, DOB11, DOB10, DOB9, DOB8, DOB7, DOB6, DOB5,
    DOB4, DOB3, DOB2, DOB1, DOB0
);
  reg [17:0] words [0:1023];
  wire [13:0] address_a = {ADA13, ADA12, ADA11, ADA10, ADA9, ADA8, ADA7, ADA6, ADA5, ADA4, ADA3, ADA2, ADA1, ADA0};
  wire [13:0] address_b = {ADB13, ADB12, ADB11, ADB10, ADB9, ADB8, ADB7, ADB6, ADB5, ADB4, ADB3, ADB2, ADB1, ADB0};
  wire [35:0] data_a = {DIB17, DIB16, DIB15, DIB14, DIB13, DIB12, DIB11, DIB10, DIB9, DIB8, DIB7, DIB6, DIB5,
    DIB4, DIB3, DIB2, DIB1, DIB0, DIA17, DIA16, DIA15, DIA14, DIA13, DIA12, DIA11, DIA10,
    DIA9, DIA8, DIA7, DIA6, DIA5, DIA4, DIA3, DIA2, DIA1, DIA0};
  wire [17:0] data_b = {DIB17, DIB16, DIB15, DIB14, DIB13, DIB12, DIB11, DIB10, DIB9, DIB8, DIB7, DIB6, DIB5,
    DIB4, DIB3, DIB2, DIB1, DIB0};
  reg [17:0] out_a = 0, out_b = 0, high_b = 0;
  integer i;
  initial for (i = 0; i < 1024; i = i + 1) words[i] = 0;

  // Bits of a word that an access of this width and address covers.
  function [17:0] covered(input integer width, input [13:0] address);
    case (width)
      1: covered = 18'h1 << (address[2:0] + (address[3] ? 9 : 0));
      2: covered = 18'h3 << ({address[2:1], 1'b0} + (address[3] ? 9 : 0));
      4: covered = 18'hf << ({address[2], 2'b00} + (address[3] ? 9 : 0));
      9: covered = address[3] ? 18'h3fe00 : 18'h1ff;
      default: covered = {{9{address[1]}}, {9{address[0]}}};
    endcase
  endfunction

  function [17:0] placed(input integer width, input [13:0] address, input [17:0] data);
    case (width)
      1: placed = {18{data[0]}};
      2: placed = {9{data[1:0]}} << (address[3] ? 1 : 0);
      4: placed = {4{data[3:0]}} << (address[3] ? 1 : 0);
      9: placed = {2{data[8:0]}};
      default: placed = data;
    endcase
  endfunction

  function [17:0] picked(input integer width, input [13:0] address, input [17:0] word);
    case (width)
      1: picked = word >> (address[2:0] + (address[3] ? 9 : 0)) & 18'h1;
      2: picked = word >> ({address[2:1], 1'b0} + (address[3] ? 9 : 0)) & 18'h3;
      4: picked = word >> ({address[2], 2'b00} + (address[3] ? 9 : 0)) & 18'hf;
      9: picked = address[3] ? word[17:9] : {9'b0, word[8:0]};
      default: picked = word;
    endcase
  endfunction

  wire [17:0] mask_a = covered(DATA_WIDTH_A, address_a);
  wire [17:0] mask_b = covered(DATA_WIDTH_B, address_b);

  always @(posedge CLKA)
    if (CEA) begin
      if (DATA_WIDTH_A == 36) begin
        if (WEA) begin
          words[{address_a[13:5], 1'b0}] <= words[{address_a[13:5], 1'b0}] & ~mask_a
            | data_a[17:0] & mask_a;
          words[{address_a[13:5], 1'b1}] <= words[{address_a[13:5], 1'b1}]
            & ~{{9{address_a[3]}}, {9{address_a[2]}}}
            | data_a[35:18] & {{9{address_a[3]}}, {9{address_a[2]}}};
        end
      end else if (WEA)
        words[address_a[13:4]] <= words[address_a[13:4]] & ~mask_a
          | placed(DATA_WIDTH_A, address_a, data_a[17:0]) & mask_a;
      else
        out_a <= RSTA ? 18'b0 : picked(DATA_WIDTH_A, address_a, words[address_a[13:4]]);
    end

  always @(posedge CLKB)
    if (CEB) begin
      if (DATA_WIDTH_B == 36) begin
        out_b <= RSTB ? 18'b0 : words[{address_b[13:5], 1'b0}];
        high_b <= RSTB ? 18'b0 : words[{address_b[13:5], 1'b1}];
      end else if (WEB)
        words[address_b[13:4]] <= words[address_b[13:4]] & ~mask_b
          | placed(DATA_WIDTH_B, address_b, data_b) & mask_b;
      else
        out_b <= RSTB ? 18'b0 : picked(DATA_WIDTH_B, address_b, words[address_b[13:4]]);
    end

  assign {DOA17, DOA16, DOA15, DOA14, DOA13, DOA12, DOA11, DOA10, DOA9, DOA8, DOA7, DOA6, DOA5,
    DOA4, DOA3, DOA2, DOA1, DOA0} =
    DATA_WIDTH_B == 36 ? out_b : out_a;
  assign {DOB17, DOB16, DOB15, DOB14, DOB13, DOB12, DOB11, DOB10, DOB9, DOB8, DOB7, DOB6, DOB5,
    DOB4, DOB3, DOB2, DOB1, DOB0} =
    DATA_WIDTH_B == 36 ? high_b : out_b;
endmodule
