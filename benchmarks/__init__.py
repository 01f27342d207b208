"""Measurements behind the documentation's figures; each prints a table and writes JSON under ``benchmarks/out``."""
