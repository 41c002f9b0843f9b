"""The xDS protocol without sockets: requests and snapshots in, responses as bytes out.

``stream.Stream`` is one proxy's conversation; ``wire`` splices responses from cached bytes. Nothing here
knows what a cluster or a policy is: discovery moves named bytes.
"""
