"""Tests of a mesh's configuration: copy this folder, run ``pytest``.

Every request here goes through the real Envoys of both workloads, with mutual TLS. Stand-ins answer for the applications.
"""

import pytest

URL = "http://reviews:9080/reviews/0"


@pytest.fixture
def shop(mesh):
    return mesh.apply("k8s/")


def test_testers_get_the_new_version(shop):
    answer = shop.client("productpage-v1").get(URL, headers={"end-user": "jason"})
    assert answer.status == 200
    assert answer.workload == "reviews-v2"
    assert answer.route == "testers"


def test_a_tenth_of_everybody_else_gets_it_too(shop):
    answers = shop.client("productpage-v1").send(URL, n=1000)
    answers.assert_shares({"reviews-v1": 0.9, "reviews-v2": 0.1})


def test_the_services_know_each_other(shop):
    answer = shop.client("productpage-v1").get(URL)
    assert answer.mtls
    assert answer.peer_identity == "spiffe://cluster.local/ns/default/sa/productpage"


def test_two_retries_hide_a_fault(shop):
    shop.fail("reviews-v1", status=503, times=1)
    shop.fail("reviews-v2", status=503, times=1)
    answer = shop.client("productpage-v1").get(URL)
    assert answer.status == 200
    assert answer.attempts in (2, 3)


def test_visitors_reach_the_page_through_the_gateway(shop):
    gateway = shop.gateway("ingressgateway")
    assert gateway.get("http://shop.example.com:8080/productpage").workload == "productpage-v1"
    assert gateway.get("http://shop.example.com:8080/admin").status == 404


def test_a_change_that_is_not_in_the_files_yet(shop):
    shop.apply("""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - fault:
      abort: {httpStatus: 418, percentage: {value: 100}}
    route:
    - destination: {host: reviews}
""")
    assert shop.client("productpage-v1").get(URL).status == 418
