"""YAML that behaviour tests share."""

from __future__ import annotations


def two_routes(*matches: str) -> str:
    """A VirtualService for ``reviews`` whose route ``chosen`` has these matches; ``rest`` takes what is left."""
    lines = "".join(f"    - {match}\n" for match in matches)
    return f"""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: reviews}}
spec:
  hosts: [reviews]
  http:
  - name: chosen
    match:
{lines}    directResponse: {{status: 201}}
  - name: rest
    directResponse: {{status: 202}}
"""
