"""Test a mesh's configuration with pytest: real Envoys, real mTLS, no Kubernetes, no root.

The plugin gives the fixture ``mesh`` (``meltemi.testing.mesh.Mesh``). Everything here is imported when a test first
uses it, so that sessions that do not test a mesh pay nothing.
"""
