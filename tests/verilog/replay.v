// Plays packets from a file to an accelerator with a 32-bit link and compares its replies with
// another file. A line of a file is a word: 1 if it is the packet's last, then the data.
//
//   iverilog -g2005 -o replay replay.v celosia.v && vvp replay +seed=1
//
// COMMANDS and REPLIES are the numbers of words.

module replay;
  parameter COMMANDS = 1, REPLIES = 1, PATIENCE = 20000;

  reg aclk = 0, aresetn = 0;
  reg [31:0] s_axis_tdata = 0;
  reg s_axis_tlast = 0, s_axis_tvalid = 0, m_axis_tready = 0;
  wire s_axis_tready, m_axis_tlast, m_axis_tvalid;
  wire [31:0] m_axis_tdata;
  wire [3:0] m_axis_tkeep;

  celosia accelerator (
    .aclk(aclk),
    .aresetn(aresetn),
    .s_axis_tdata(s_axis_tdata),
    .s_axis_tkeep(4'b1111),
    .s_axis_tlast(s_axis_tlast),
    .s_axis_tvalid(s_axis_tvalid),
    .s_axis_tready(s_axis_tready),
    .m_axis_tdata(m_axis_tdata),
    .m_axis_tkeep(m_axis_tkeep),
    .m_axis_tlast(m_axis_tlast),
    .m_axis_tvalid(m_axis_tvalid),
    .m_axis_tready(m_axis_tready)
  );

  reg [32:0] commands [0:COMMANDS - 1];
  reg [32:0] replies [0:REPLIES - 1];
  integer sent = 0, received = 0, wrong = 0, idle = 0, seed = 1;

  always #5 aclk = ~aclk;

  initial begin
    if (!$value$plusargs("seed=%d", seed)) seed = 1;
    $readmemh("commands.hex", commands);
    $readmemh("replies.hex", replies);
    repeat (2) @(negedge aclk);
    aresetn = 1;
  end

  // Inputs change at the falling edge, so that there is no doubt what a rising edge sees.
  always @(negedge aclk) if (aresetn) begin
    if (!s_axis_tvalid && sent < COMMANDS && $random(seed) % 4 != 0) begin
      s_axis_tvalid = 1;
      {s_axis_tlast, s_axis_tdata} = commands[sent];
    end
    m_axis_tready = $random(seed) % 4 != 0;
  end

  always @(posedge aclk) if (aresetn) begin
    idle = idle + 1;
    if (s_axis_tvalid && s_axis_tready) begin
      sent = sent + 1;
      idle = 0;
      s_axis_tvalid <= 0;
    end
    if (m_axis_tvalid && m_axis_tready) begin
      if ({m_axis_tlast, m_axis_tdata} !== replies[received] || m_axis_tkeep !== 4'b1111) begin
        wrong = wrong + 1;
        $display("word %0d: %h, expected %h", received, {m_axis_tlast, m_axis_tdata},
                 replies[received]);
      end
      received = received + 1;
      idle = 0;
    end
    if (received == REPLIES && sent == COMMANDS) begin
      $display("%0d words compared, %0d wrong", received, wrong);
      $finish;
    end
    if (idle == PATIENCE) begin
      $display("nothing moves: %0d of %0d words sent, %0d of %0d received", sent, COMMANDS,
               received, REPLIES);
      $finish;
    end
  end
endmodule
