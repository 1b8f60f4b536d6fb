"""Tests. This file is loaded before conftest, and so before NumPy."""

from experiments.commands.terminal import draw_alike_everywhere

draw_alike_everywhere()
