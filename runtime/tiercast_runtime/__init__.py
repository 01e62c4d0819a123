"""What is real: the Engram runtime and the probes that measure a machine."""
