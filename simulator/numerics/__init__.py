"""Arithmetic that stays right at every scale and in every stored precision."""
