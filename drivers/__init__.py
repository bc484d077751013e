"""Drivers: what makes, starts and deletes virtual machines."""
