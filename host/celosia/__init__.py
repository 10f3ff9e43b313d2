"""Celosia."""
