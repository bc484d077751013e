"""Benchmarks of claude-vm."""
