"""The classic tasks on Bookinfo that test_traffic.py does not show: shifting by halves, aborts, request timeouts."""

from __future__ import annotations

import re
import shutil
import time
from collections import Counter
from collections.abc import Callable

import pytest

from e2e.conftest import Ingress, Shell, Workload, steadily, wait_for
from meltemi_samples.bookinfo.src import mysqldb

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]
Apply = Callable[[str], None]
NETWORKING = "samples/bookinfo/networking"
UNAVAILABLE = "Sorry, product reviews are currently unavailable"
REVIEWS_V2 = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
    - route: [{destination: {host: reviews, subset: v2}}]
"""
SLOW_RATINGS = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ratings}
spec:
  hosts: [ratings]
  http:
    - fault:
        delay: {percentage: {value: 100}, fixedDelay: 2s}
      route: [{destination: {host: ratings, subset: v1}}]
"""


def test_traffic_shifting_by_halves_and_then_all(ingress: Ingress, applied: Apply) -> None:
    applied(f"{NETWORKING}/destination-rule-all.yaml")
    applied(f"{NETWORKING}/virtual-service-all-v1.yaml")
    wait_for("v1 only", steadily(lambda: ingress.reviews() == "v1"))
    applied(f"{NETWORKING}/virtual-service-reviews-50-v3.yaml")
    wait_for("some v3", lambda: ingress.reviews() == "v3")
    seen = Counter(ingress.reviews() for _ in range(100))
    assert set(seen) == {"v1", "v3"}
    # Half of 100, five standard deviations around it.
    assert 25 <= seen["v3"] <= 75
    applied(f"{NETWORKING}/virtual-service-reviews-v3.yaml")
    wait_for("v3 only", steadily(lambda: ingress.reviews() == "v3", 20))


def test_an_abort_takes_the_stars_of_jason_only(ingress: Ingress, applied: Apply) -> None:
    applied(f"{NETWORKING}/destination-rule-all.yaml")
    applied(f"{NETWORKING}/virtual-service-all-v1.yaml")
    applied(f"{NETWORKING}/virtual-service-reviews-test-v2.yaml")
    applied(f"{NETWORKING}/virtual-service-ratings-test-abort.yaml")
    cookie = ingress.login("jason")
    sorry = "Ratings service is currently unavailable"
    wait_for(
        "no stars for jason",
        steadily(lambda: sorry in ingress.get("/productpage", cookie=cookie)[1], 5),
    )
    assert sorry not in ingress.get("/productpage")[1]


def test_a_request_timeout_ends_the_wait_for_slow_ratings(ingress: Ingress, applied: Apply) -> None:
    applied(f"{NETWORKING}/destination-rule-all.yaml")
    applied(f"{NETWORKING}/virtual-service-all-v1.yaml")
    applied(REVIEWS_V2)
    applied(SLOW_RATINGS)

    def page() -> tuple[float, str]:
        started = time.monotonic()
        _, body = ingress.get("/productpage")
        return time.monotonic() - started, body

    # v2 waits for the delayed ratings, and the page for it: all there, two seconds later.
    wait_for("a slow page", page, accept=lambda found: found[0] > 2 and UNAVAILABLE not in found[1])
    applied(REVIEWS_V2 + "      timeout: 0.5s\n")
    # Two tries of half a second each: productpage asks twice.
    _, body = wait_for("reviews given up", page, accept=lambda found: UNAVAILABLE in found[1])
    assert "Book Details" in body or "Publisher" in body


@pytest.mark.skipif(
    not any(shutil.which(name, path=mysqldb.SYSTEM) for name in mysqldb.SERVERS),
    reason="neither MariaDB nor MySQL is installed (sudo apt-get install mariadb-server)",
)
def test_ratings_from_mysql_through_the_mesh(mesh: Shell, ingress: Ingress, applied: Apply) -> None:
    """A protocol in which the server speaks first, between two sidecars."""
    applied(f"{NETWORKING}/destination-rule-all.yaml")
    applied("samples/bookinfo/platform/kube/bookinfo-mysql.yaml")
    applied("samples/bookinfo/platform/kube/bookinfo-ratings-v2-mysql.yaml")
    mesh("kubectl rollout status -n bookinfo deployment/mysqldb-v1 --timeout=90s")
    mesh("kubectl rollout status -n bookinfo deployment/ratings-v2-mysql --timeout=60s")
    applied(f"{NETWORKING}/virtual-service-ratings-mysql.yaml")
    wait_for("v3 only", steadily(lambda: ingress.reviews() == "v3"))

    def stars() -> list[str]:
        return re.findall(r'title="(\d) of 5"', ingress.get("/productpage")[1])

    wait_for("the stars of the database", stars, accept=["5", "4"].__eq__)
    # What changes in the database shows on the page: the stars were not ratings' own.
    database = Workload(mesh, "mysqldb")
    sql = "UPDATE test.ratings SET Rating = 1 WHERE ReviewID = 2"
    script = f"import pymysql; c = pymysql.connect(host='127.0.0.1', user='root', password='password', autocommit=True); c.cursor().execute('{sql}')"
    database.exec("mysqldb", "python3 -", stdin=script)
    wait_for("the new stars", stars, accept=["5", "1"].__eq__)
