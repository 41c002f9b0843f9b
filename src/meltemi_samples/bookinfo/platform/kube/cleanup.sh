#!/bin/sh
# Takes Bookinfo and its routing rules out of a namespace (asked for, or NAMESPACE).
set -eu
here=$(cd "$(dirname "$0")" && pwd)

if [ -z "${NAMESPACE:-}" ]; then
  printf 'namespace? [default] '
  read -r NAMESPACE || true
fi
NAMESPACE=${NAMESPACE:-default}

for kind in gateways.networking.istio.io virtualservices.networking.istio.io destinationrules.networking.istio.io; do
  # Only the rules that Bookinfo's files bring, in whatever variant they were applied.
  for name in bookinfo-gateway bookinfo productpage details reviews ratings; do
    kubectl delete -n "$NAMESPACE" --ignore-not-found "$kind" "$name"
  done
done
for file in "$here"/bookinfo*.yaml; do
  kubectl delete -n "$NAMESPACE" --ignore-not-found -f "$file"
done
echo "Bookinfo is gone from namespace $NAMESPACE"
