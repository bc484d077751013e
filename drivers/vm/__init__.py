"""What drivers have in common whose guests are virtual machines under QEMU, whoever starts them."""
