"""Runs testbenches in Amaranth's simulator, for a limited time."""

from amaranth.sim import Simulator

PERIOD = 1e-8


def simulate(component, *testbenches, clocks=20_000):
    """Run testbenches until the first has ended, which must be within some clocks."""
    simulator = Simulator(component)
    simulator.add_clock(PERIOD)
    done = []

    async def first(ctx):
        await testbenches[0](ctx)
        done.append(True)

    simulator.add_testbench(first)
    for testbench in testbenches[1:]:
        simulator.add_testbench(testbench, background=True)
    # Each clock is two steps in time, of which each may take some rounds.
    for _ in range(20 * clocks):
        if done:
            return
        simulator.advance()
    raise AssertionError(f"not done in {clocks} clocks")


async def put(ctx, stream, value):
    """Offer a value until it is taken."""
    ctx.set(stream.payload, value)
    ctx.set(stream.valid, 1)
    while True:
        _, _, ready = await ctx.tick().sample(stream.ready)
        if ready:
            break
    ctx.set(stream.valid, 0)
