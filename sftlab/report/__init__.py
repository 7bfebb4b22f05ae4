"""Shows what was found: reads files, never live objects, and needs no torch."""
