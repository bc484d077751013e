"""QEMU without root: microVM-like guests, RAM template clones."""
