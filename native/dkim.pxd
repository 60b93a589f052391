"""Nothing of this kernel is used from another one."""
