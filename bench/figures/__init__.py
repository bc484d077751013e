"""The figures of the performance targets, each with the baselines that it is measured against."""
