"""Platforms -> services, endpoints, workloads. ``store`` is the front; see there."""
