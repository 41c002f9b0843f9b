"""The certificate authority as pure functions: request, identity, time and serial in, certificate out."""
