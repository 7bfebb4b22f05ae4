"""Reports: reads result files, never live objects, and needs no torch."""
