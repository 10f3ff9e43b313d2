"""The hardware side of Celosia: configuration, arithmetic, wire protocol and gateware.

Importing this package, `config`, `arithmetic` or `protocol` needs NumPy alone; the gateware
modules need Amaranth (``pip install "celosia[hw]"``).
"""

VERSION = (0, 1, 0)
"""Version of the gateware, as an IDENTITY reply reports it."""
