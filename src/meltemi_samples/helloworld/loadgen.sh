#!/bin/sh
# Asks for /hello without a pause: GATEWAY_URL=$INGRESS_HOST:$INGRESS_PORT ./loadgen.sh
: "${GATEWAY_URL:?set it to the address of the ingress gateway, as in 127.0.0.10:80}"
while :; do
  curl -sS "http://$GATEWAY_URL/hello"
  sleep "${PAUSE:-0.1}"
done
