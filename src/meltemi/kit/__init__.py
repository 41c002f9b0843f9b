"""What would belong in the standard library: clock, tasks, back-off, logs, limits. Knows nothing of meshes."""
