"""Examples, each run with ``python -m celosia.examples.NAME``."""
