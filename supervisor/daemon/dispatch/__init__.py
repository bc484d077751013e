"""Carries out what the core decides: effects become tasks, and their ends become events."""
