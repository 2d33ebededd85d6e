"""Drivers for virtual machine monitors, behind ports.vmm."""
