"""The rotation never takes a root away from somebody who needs it, whatever happens in between."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from ca.making import NOW, Made, files
from meltemi.ca import authority, rotation, secrets
from meltemi.ca.rotation import Held, Phase, Proof, Report, Rotation

OLD, NEW = Made("old root"), Made("new root")
PAIR = rotation.Pair(
    secrets.authority_of(files(OLD, root=OLD)), secrets.authority_of(files(NEW, root=NEW))
)
A, B = (authority.fingerprint(m.certificate) for m in (OLD, NEW))
START = rotation.begin("r1", secrets.SELF_SIGNED_SECRET, NOW)


def proof(
    state: Rotation, *held: Held | None, base: str = A, unpublished: tuple[str, ...] = ()
) -> Proof:
    return Proof(
        {f"p{i}.default": h for i, h in enumerate(held)},
        {"istiod-1": (state.token, base)},
        unpublished,
    )


def has(trusts: str, issuer: str) -> Held:
    return Held(frozenset(A if t == "a" else B for t in trusts), A if issuer == "a" else B)


def test_the_way_forward() -> None:
    """Each phase waits for the last proxy, and then goes on."""
    state = START
    way = [
        (Phase.DISTRIBUTE, has("a", "a"), has("ab", "a")),
        (Phase.ISSUE, has("ab", "a"), has("ab", "b")),
        (Phase.RETIRE, has("ab", "b"), has("b", "b")),
    ]
    for phase, not_yet, done in way:
        assert state.phase is phase
        assert rotation.advance(state, PAIR, proof(state, done, not_yet), NOW) == state
        assert rotation.advance(state, PAIR, proof(state, done, None), NOW) == state
        following = rotation.advance(state, PAIR, proof(state, done, done), NOW + 1)
        assert following is not None
        state = following
    assert state.phase is Phase.COMMIT
    assert rotation.advance(state, PAIR, proof(state, base=A), NOW) == state
    assert rotation.advance(state, PAIR, proof(state, base=B), NOW) is None


def test_who_signs_and_what_is_trusted() -> None:
    """Both roots while certificates of both are in use; the bundle differs in each phase forward."""
    seen = []
    for phase in (Phase.DISTRIBUTE, Phase.ISSUE, Phase.RETIRE):
        held = rotation.effective(PAIR, phase)
        seen.append((authority.fingerprint(held.certificate), authority.fingerprints(held.roots)))
    assert seen == [(A, (A, B)), (B, (B, A)), (B, (B,))]


def test_one_missing_crl_switches_revocation_off() -> None:
    """A verifier with a list of one authority refuses every certificate of the other."""
    listed = replace(PAIR.old, crl=OLD.crl(1).decode())
    both = rotation.Pair(listed, replace(PAIR.new, crl=NEW.crl(2).decode()))
    assert rotation.effective(rotation.Pair(listed, PAIR.new), Phase.ISSUE).crl == ""
    assert len(authority.revocation_lists(rotation.effective(both, Phase.ISSUE).crl)) == 2


def test_replicas_and_namespaces_are_waited_for() -> None:
    """A control plane that still works in the phase before signs with the wrong key."""
    late = Proof({}, {"istiod-1": (START.token, A), "istiod-2": ("", A)})
    assert any("istiod-2" in line for line in rotation.waiting_for(START, PAIR, late))
    behind = proof(START, unpublished=("shop",))
    assert any("shop" in line for line in rotation.waiting_for(START, PAIR, behind))


def test_below_one_root_proxies_are_asked_at_once() -> None:
    """The bundle stays the same, so that nothing else would tell them to renew."""
    one, two = Made("one", OLD), Made("two", OLD)
    pair = rotation.Pair(
        secrets.authority_of(files(one, root=OLD)), secrets.authority_of(files(two, root=OLD))
    )
    held = Held(frozenset({A}), authority.fingerprint(one.certificate))
    state = rotation.advance(START, pair, proof(START, held), NOW)
    assert state is not None
    assert (state.phase, state.renewal) == (Phase.ISSUE, 1)
    texts = [
        rotation.published(rotation.effective(pair, s.phase).roots, s.renewal)
        for s in (START, state)
    ]
    assert len(set(texts)) == 2
    assert rotation.abort(state, NOW, pair).renewal == 1
    assert rotation.resume(rotation.abort(state, NOW, pair), NOW, pair) == START
    renewed = replace(held, issuer=authority.fingerprint(two.certificate))
    retire = rotation.advance(state, pair, proof(state, renewed), NOW)
    assert retire is not None
    assert (retire.phase, retire.renewal) == (Phase.RETIRE, 0)


def test_reports_of_a_large_mesh_fit_into_a_config_map() -> None:
    """Ten thousand proxies on one replica, in the middle of a rotation: less than half a mebibyte."""
    rand = random.Random(1)
    names = [
        f"web-{i % 300}-{rand.randbytes(4).hex()}-{i:05x}.team-{i % 40}" for i in range(10_000)
    ]
    records = {
        name: Held(frozenset({A, B}), A, NOW + rand.random() * 3600, NOW + 86400) for name in names
    }
    text = rotation.write_report(Report("t", A, frozenset(names), records))
    assert len(text) < 512 * 1024
    assert rotation.read_report(text).connected == frozenset(names)


def test_back_and_forth() -> None:
    """Abort and resume move between the ways; only a finished exchange cannot be aborted."""
    assert rotation.abort(START, NOW).phase is Phase.REVERT
    retire = replace(START, phase=Phase.RETIRE)
    restore = rotation.abort(retire, NOW)
    assert restore.phase is Phase.RESTORE
    assert rotation.abort(restore, NOW) == restore
    assert rotation.resume(restore, NOW).phase is Phase.ISSUE
    with pytest.raises(rotation.OrderRefused, match="already in place"):
        rotation.abort(replace(START, phase=Phase.COMMIT), NOW)


@pytest.mark.parametrize("seed", range(30))
def test_at_any_time_every_pair_of_proxies_can_talk(seed: int) -> None:
    """A pretend mesh whose proxies follow at random, with aborts and resumes at random times."""
    rand = random.Random(seed)
    mesh = [has("a", "a") for _ in range(5)]
    state: Rotation | None = START
    for _ in range(3000):
        if state is None:
            break
        now = rotation.effective(PAIR, state.phase)
        who = rand.randrange(5)
        # An agent trusts what is published, then asks; both are separate moments.
        if rand.random() < 0.5:
            mesh[who] = replace(mesh[who], trusts=frozenset(authority.fingerprints(now.roots)))
        elif mesh[who].trusts == frozenset(authority.fingerprints(now.roots)):
            mesh[who] = replace(mesh[who], issuer=authority.fingerprint(now.certificate))
        for one in mesh:
            for other in mesh:
                assert one.issuer in other.trusts
        if state.phase is not Phase.COMMIT and rand.random() < 0.05:
            state = (
                rotation.abort(state, NOW) if rand.random() < 0.5 else rotation.resume(state, NOW)
            )
            continue
        state = rotation.advance(state, PAIR, proof(state, *mesh, base=B), NOW)
    assert state is None
    assert len({held.issuer for held in mesh}) == 1


def test_state_and_reports_survive_being_written() -> None:
    """What a replica writes another reads; what nobody can read is said or ignored."""
    assert rotation.read_state(rotation.write_state(START)) == START
    with pytest.raises(ValueError, match=r"istio-ca-rotation, key state\.json"):
        rotation.read_state("{}")
    report = Report(
        "t", A, frozenset({"p.default"}), {"p.default": Held(frozenset({A}), A, 1.5, 9.0)}
    )
    assert rotation.read_report(rotation.write_report(report)) == report
    assert rotation.read_report("[") == rotation.read_report("AAAA") == Report()
    newer = Report("t", B, frozenset(), {"p.default": Held(frozenset({B}), B, 2.0, 9.0)})
    assert (
        rotation.proof_of({"1": report, "2": newer}).proxies["p.default"]
        == newer.records["p.default"]
    )
