"""The pure core: life cycles, pool and sessions. Events in, effects out."""
