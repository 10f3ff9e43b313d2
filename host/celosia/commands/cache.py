"""``celosia cache``: the built simulations."""

from __future__ import annotations

import argparse

__all__ = ["add_parser"]


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add this command."""
    parser = subparsers.add_parser(
        "cache",
        help="show or clear the built simulations",
        description="Show the folder of built simulations ($CELOSIA_CACHE_DIR).",
        allow_abbrev=False,
    )
    parser.set_defaults(function=_cache)
    parser.add_argument("--clear", action="store_true", help="delete them")


def _cache(arguments: argparse.Namespace) -> int:
    from celosia_sim import cache

    if arguments.clear:
        print(f"{cache.clear():,} bytes freed in {cache.location()}")
        return 0
    entries = cache.entries()
    for entry in entries:
        print(f"{entry.modified:%Y-%m-%d %H:%M}  {entry.size:>12,}  {entry.name}")
    total = sum(entry.size for entry in entries)
    print(f"{total:,} bytes in {len(entries)} files in {cache.location()}")
    return 0
