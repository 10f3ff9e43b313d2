"""The commands of ``celosia``, a module each.

Its `add_parser` adds a parser to the subparsers it is given, and sets `function` there: of the
parsed arguments, it returns the exit status. `celosia.cli` lists the modules.
"""
