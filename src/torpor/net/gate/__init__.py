"""What runs in a slot whose sandbox may reach names: a process that takes over its TCP connections, reads which name each is for, and connects there."""
