"""The QEMU driver: pure plan, QMP client, versioned handle."""

from torpor.vmm.qemu.driver import QemuVmm

__all__ = ["QemuVmm"]
