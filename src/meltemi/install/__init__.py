"""From an ``IstioOperator`` to the objects of a cluster: pure decisions.

In: the resource's spec (a plain mapping, checked by the config stage). Out: ordered manifests per component, and
a plan against what a cluster holds. Nothing here talks to a cluster: ``programs.operator`` and
``commands.install`` carry the plans out.
"""
