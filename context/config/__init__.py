"""Configuration: schema, layers, provenance."""
