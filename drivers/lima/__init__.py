"""VMs that Lima starts: clones of a template's memory beneath an unmodified `limactl`."""
