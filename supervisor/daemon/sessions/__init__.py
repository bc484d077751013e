"""A session at run time, with a client or without one, and what is told of it."""
