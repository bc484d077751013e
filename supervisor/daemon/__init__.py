"""The imperative shell around the core: one process per user that owns VMs and sessions."""
