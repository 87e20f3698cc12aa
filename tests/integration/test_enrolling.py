"""Joining by one string, and the roster: enroll, planner and workers on a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fedbus.base.clock import SystemClock, random_token
from fedbus.base.errors import (
    AuthRefused,
    FedbusError,
    InviteRefused,
    NameTaken,
    UnknownInvite,
    UnknownWorker,
)
from fedbus.bus import Bus
from fedbus.bus.joinstring import JoinString
from fedbus.bus.kv import Bucket
from fedbus.bus.micro import ask
from fedbus.bus.store import leader_get, persist
from fedbus.rounds.membership import CALM_S, MOST_CHANGES
from fedbus.rounds.roster import LOST_AFTER_S
from fedbus.runtime.probe import Answer, probe
from fedbus_enroll.service import Enroll
from fedbus_schemas import subjects
from fedbus_schemas.messages import Beat, Capabilities
from fedbus_schemas.roster import INVITE_KEY, Activity, Join, Joined, Nothing, RosterEvent, WorkerReport
from fedbus_worker.enrolling import CREDENTIAL_FILE, PENDING_FILE, enrol
from fedbus_worker.entering import enter
from support.federation import Parties, Party, federation
from support.natsd import Stack

CAN = Capabilities(tasks=["noop"], codecs=["dense"])


class Later(SystemClock):
    """The machine's clock, put forward by a test."""

    ahead_s = 0.0

    def now(self) -> float:
        return super().now() + self.ahead_s


@asynccontextmanager
async def enrolling(stack: Stack, folder: Path) -> AsyncIterator[tuple[Parties, Party, Later]]:
    """A federation without workers, with enroll."""
    clock = Later()
    async with federation(stack.credentials, folder, workers=()) as parties:
        enroll = await parties.add("enroll", lambda bus: Enroll(bus, stack.folder, clock).run())
        await answers(parties)
        yield parties, enroll, clock


async def answers(parties: Parties) -> None:
    await persist(parties.operator, lambda: parties.operator.request("$SRV.PING.enroll"))


async def invited(parties: Parties, site: str = "north", **more: Any) -> JoinString:
    return (await parties.api.members.invite(site, **more))[1]


async def state(parties: Parties, name: str, wanted: str) -> WorkerReport:
    """The roster's word on a worker, as soon as it says that state."""

    async def says() -> bool:
        try:
            return (await parties.api.members.worker(name)).state == wanted
        except UnknownWorker:
            return False

    await parties.until_true(says, f"{name} is {wanted}")
    return await parties.api.members.worker(name)


async def events(parties: Parties, about: str) -> list[RosterEvent]:
    """All events about a worker or an invitation."""
    found, seq = [], 1
    query = {"next_by_subj": "fb.event.>"}

    async def read() -> tuple[int, str, bytes] | None:
        # A broker that reads its accounts anew, as it does at each join, answers nobody for a moment.
        return await persist(
            parties.operator, lambda: leader_get(parties.operator, subjects.EVENTS, {"seq": seq, **query})
        )

    while (stored := await read()) is not None:
        event = RosterEvent.model_validate_json(stored[2])
        assert stored[1] == subjects.event(event.kind)
        if about in (event.worker, event.invite):
            found.append(event)
        seq = stored[0] + 1
    return found


def name() -> str:
    return f"w-{random_token(4)}"


def fresh(root: Path) -> Path:
    """The state folder of a new worker."""
    folder = root / name()
    folder.mkdir()
    return folder


async def test_workers_join_by_a_string_and_train(stack: Stack, tmp_path: Path) -> None:
    """Site and labels are the invitation's: a worker that claims others is not taken for one of them."""
    site, first, second, liar = random_token(4), name(), name(), name()
    async with enrolling(stack, tmp_path) as (parties, _, _):
        string = await invited(parties, site, uses=2, labels={"gpu": "yes"})
        elsewhere = await invited(parties, "elsewhere", labels={"gpu": "no"})
        for each, text in ((first, string), (second, string), (liar, elsewhere)):
            locked, own = await enter(tmp_path / "state", text.to_text(), each, None)
            assert (own.user, own.url) == (each, stack.url)
            assert own == stack.credentials(each), "the broker has this very secret"
            saved = locked.folder / CREDENTIAL_FILE
            assert saved.stat().st_mode & 0o777 == 0o600
            assert own.password in saved.read_text()
            assert not (locked.folder / PENDING_FILE).exists()
            locked.release()
            await parties.join(each, labels={"site": site, "gpu": "yes", "own": "1"})
        plan = {"rounds": 2, "cohort": {"min": 2, "require": {"site": site, "gpu": "yes"}}}
        run = await parties.start(plan, f"by-string-{site}")
        waiting = await parties.start({"cohort": {"min": 3, "require": {"site": site}}}, f"waits-{site}")
        await parties.waits(waiting, "have 2 of 3")
        (why,) = await parties.api.members.why(liar, waiting)
        assert (why.code, why.reason) == ("labels", f"labels do not match: site is elsewhere, wanted {site}")
        (why,) = await parties.api.members.why(first, waiting)
        assert why.code == "waiting"
        report = await parties.finished(run)
        assert [(sorted(r.cohort), r.accepted) for r in report.rounds] == [(sorted([first, second]), 2)] * 2
        await parties.api.abort(waiting)
        known = await state(parties, first, "here")
        assert (known.site, known.labels) == (site, {"gpu": "yes", "own": "1"})
        assert "noop" in known.capabilities.tasks
        assert (await state(parties, liar, "here")).labels == {"gpu": "no", "own": "1"}
        listed = {w.worker: w for w in await parties.api.members.workers()}
        assert listed[second].site == site
        assert [e.kind for e in await events(parties, first)] == ["invite-used", "joined"]
        with pytest.raises(UnknownWorker, match="no worker is called"):
            await parties.api.members.why(name())


async def test_of_two_joins_by_one_use_one_succeeds(stack: Stack, tmp_path: Path) -> None:
    async with enrolling(stack, tmp_path) as (parties, _, _):
        # Two instances of enroll: the race is decided by the broker, not within one process.
        await parties.add("enroll", lambda bus: Enroll(bus, stack.folder).run())
        for _ in range(5):
            string = await invited(parties)
            folders = [fresh(tmp_path) for _ in range(3)]
            came = await asyncio.gather(*(enrol(f, string) for f in folders), return_exceptions=True)
            failed = [each for each in came if isinstance(each, BaseException)]
            assert [type(each) for each in failed] == [InviteRefused] * 2, came
            (found,) = [i for i in await parties.api.members.invites() if i.id == string.invite]
            assert (found.state, found.left, len(found.workers)) == ("used-up", 0, 1)
            for folder, each in zip(folders, came, strict=True):
                assert (folder.name in stack.broker.accounts.workers()) == (
                    not isinstance(each, BaseException)
                )


async def refused(string: JoinString, folder: Path) -> FedbusError:
    with pytest.raises(InviteRefused) as caught:
        await enrol(folder, string)
    assert caught.value.hint
    assert folder.name not in caught.value.message
    return caught.value


async def shut(parties: Parties, string: JoinString) -> None:
    """Return once the broker refuses the holder."""

    async def is_refused() -> bool:
        return await asyncio.to_thread(probe, string.credentials) is Answer.REFUSED

    await parties.until_true(is_refused, "the holder is shut out")


async def test_invitations_that_let_nobody_in(stack: Stack, tmp_path: Path) -> None:
    async with enrolling(stack, tmp_path) as (parties, _, clock):
        wrong = JoinString(stack.url, (await invited(parties)).invite, "0" * 48)
        assert "wrong, expired, used up or revoked" in (await refused(wrong, fresh(tmp_path))).message

        revoked = await invited(parties, uses=2)
        came = fresh(tmp_path)
        own = await enrol(came, revoked)
        await parties.api.members.revoke_invite(revoked.invite)
        await shut(parties, revoked)
        await refused(revoked, fresh(tmp_path))
        assert await asyncio.to_thread(probe, own) is Answer.ACCEPTED, "who came by it stays"
        assert await enrol(came, revoked) == own
        await parties.api.members.revoke_invite(revoked.invite)
        with pytest.raises(UnknownInvite):
            await parties.api.members.revoke_invite("0" * 12)

        used = await invited(parties)
        folder = fresh(tmp_path)
        own = await enrol(folder, used)
        await shut(parties, used)
        await refused(used, fresh(tmp_path))
        assert await enrol(folder, used) == own, "the same string again: the saved credential"

        expiring = await invited(parties, expires_s=60.0)
        clock.ahead_s = 61.0
        await shut(parties, expiring)
        await refused(expiring, fresh(tmp_path))
        states = {i.id: i.state for i in await parties.api.members.invites()}
        ours = (revoked, used, expiring)
        assert [states[string.invite] for string in ours] == ["revoked", "used-up", "expired"]
        assert [e.kind for e in await events(parties, expiring.invite)] == [
            "invite-created",
            "invite-expired",
        ]
        kinds = [e.kind for e in await events(parties, revoked.invite)]
        assert kinds == ["invite-created", "invite-used", "invite-revoked"]
        # Nothing that is stored tells the secret.
        stored = await Bucket(parties.operator, subjects.ROSTER_BUCKET).get(INVITE_KEY + used.invite)
        assert stored
        assert used.secret.encode() not in stored.value


async def test_an_answer_that_is_lost_costs_nothing(stack: Stack, tmp_path: Path) -> None:
    async with enrolling(stack, tmp_path) as (parties, _, _):
        string, folder = await invited(parties), fresh(tmp_path)
        own = await enrol(folder, string)
        # As if the worker had been killed before it heard.
        (folder / CREDENTIAL_FILE).rename(folder / PENDING_FILE)
        await shut(parties, string)
        assert await enrol(folder, string) == own
        assert (folder / CREDENTIAL_FILE).exists()


async def test_a_name_that_is_taken(stack: Stack, tmp_path: Path) -> None:
    taken = name()
    before = stack.credentials(taken)
    async with enrolling(stack, tmp_path) as (parties, _, _):
        string = await invited(parties)
        with pytest.raises(NameTaken, match=f"another worker is called '{taken}'"):
            await enter(tmp_path / "state", string.to_text(), taken, None)
        for reserved in ("planner", "operator", "invite-0"):
            with pytest.raises(FedbusError, match="cannot name a worker"):
                await enter(tmp_path / "state", string.to_text(), reserved, None)
        assert stack.credentials(taken) == before
        (found,) = [i for i in await parties.api.members.invites() if i.id == string.invite]
        assert found.left == 1, "a refused name uses nothing up"
        free = name()
        locked, own = await enter(tmp_path / "state", string.to_text(), free, None)
        locked.release()
        # The same string without a name, and neither: it is the worker of this host that came by it.
        for text in (string.to_text(), f"nats://{stack.url.removeprefix('nats://')}", None):
            folder = None if text else tmp_path / "no-stack"
            locked, again = await enter(tmp_path / "state", text, None, folder)
            locked.release()
            assert (locked.folder.name, again) == (free, own)
        assert (await events(parties, taken))[-1].code == "name-taken"


async def test_automatic_names_pass_those_that_are_taken(stack: Stack, tmp_path: Path) -> None:
    async with enrolling(stack, tmp_path) as (parties, _, _):
        string = await invited(parties, uses=3)
        names = []
        for host in ("one", "two"):
            # Two hosts that are called alike: each has a state root of its own.
            locked, own = await enter(tmp_path / host, string.to_text(), None, None)
            names.append(own.user)
            locked.release()
        assert len(set(names)) == 2
        other = await invited(parties, "south")
        locked, own = await enter(tmp_path / "one", other.to_text(), None, None)
        assert own.user not in names, "another invitation is another worker"
        locked.release()


async def test_states_and_events_of_a_worker(stack: Stack, tmp_path: Path) -> None:
    """Joined, left, back, killed and lost within the time set, back again; and enroll restarted between."""
    worker = name()
    loop = asyncio.get_running_loop()
    async with enrolling(stack, tmp_path) as (parties, enroll, _):
        agent = await parties.join(worker, labels={"a": "1"})
        first = await state(parties, worker, "here")
        assert (first.site, first.labels) == (None, {"a": "1"})
        await agent.stop()
        await state(parties, worker, "left")
        await agent.start()
        await state(parties, worker, "here")
        await enroll.stop()
        await agent.crash()
        await enroll.start()
        await answers(parties)
        restarted = loop.time()
        await state(parties, worker, "lost")
        took = loop.time() - restarted
        # The worker was silent before already, but enroll could not hear it: it has the whole time again.
        assert LOST_AFTER_S - 1.0 < took < LOST_AFTER_S + 2.0
        await agent.start()
        back = await state(parties, worker, "here")
        assert back.since > first.since
        told = await events(parties, worker)
        assert [e.kind for e in told] == ["joined", "left", "back", "lost", "back"]
        assert told[3].reason == f"{worker} was not heard for over 10 s"


async def test_a_restart_of_enroll_changes_nothing(stack: Stack, tmp_path: Path) -> None:
    workers = [name() for _ in range(2)]
    async with enrolling(stack, tmp_path) as (parties, enroll, clock):
        string = await invited(parties)
        for each in workers:
            await parties.script(each)
            await state(parties, each, "here")
        keys = [f"worker.{each}" for each in workers]
        bucket = Bucket(parties.operator, subjects.ROSTER_BUCKET)
        before = [await bucket.get(key) for key in keys]
        await enroll.crash()
        await enroll.start()
        await answers(parties)
        folder = fresh(tmp_path)
        await enrol(folder, string)  # invitations outlive it too
        # A clock that jumps, as after a pause, makes nobody lost.
        clock.ahead_s = 3600.0
        await parties.scripted[workers[0]].beat(leaving=True)
        await state(parties, workers[0], "left")
        after = [await bucket.get(key) for key in keys]
        assert after[1] == before[1], "written on change only"
        assert after[0] != before[0]


async def test_a_worker_that_comes_and_goes_all_the_time_fills_nothing(stack: Stack, tmp_path: Path) -> None:
    worker = name()
    async with enrolling(stack, tmp_path) as (parties, _, clock):
        bus = await Bus.connect(stack.credentials(worker))

        async def beat(leaving: bool) -> None:
            said = Beat(worker=worker, at=1.0, incarnation="1", capabilities=CAN, leaving=leaving)
            await bus.publish(subjects.beat(worker), said.model_dump_json().encode())
            await bus.flush()
            # Its answer comes behind the beat: each one is heard and looked at.
            await ask(parties.operator, "enroll", "activity", Nothing(), Activity)

        try:
            for number in range(100):
                await beat(leaving=bool(number % 2))
            assert len(await events(parties, worker)) <= MOST_CHANGES
            for leaving, wanted in ((False, "here"), (True, "left")):
                clock.ahead_s += CALM_S
                await beat(leaving)
                await state(parties, worker, wanted)
        finally:
            await bus.close()


async def test_what_a_worker_is_doing(stack: Stack, tmp_path: Path) -> None:
    worker = name()
    async with enrolling(stack, tmp_path) as (parties, _, _):
        await parties.join(worker)
        await state(parties, worker, "here")
        assert (await parties.api.members.worker(worker)).doing is None
        plan = {"train": {"seconds": 5.0}, "cohort": {"min": 1}}
        run = await parties.start(plan, f"doing-{worker}")

        async def trains() -> bool:
            doing = (await parties.api.members.worker(worker)).doing
            return doing is not None and (doing.run, doing.round, doing.phase) == (run, 1, "train")

        await parties.until_true(trains, "it trains")
        (why,) = await parties.api.members.why(worker, run)
        assert (why.round, why.code) == (1, "cohort")
        await parties.api.abort(run)


async def test_a_holder_cannot_ask_for_another_invitation(stack: Stack, tmp_path: Path) -> None:
    async with enrolling(stack, tmp_path) as (parties, _, _):
        mine, other = await invited(parties), await invited(parties)
        bus = await Bus.connect(mine.credentials)
        try:
            for invite, secret in ((other.invite, mine.secret), ("0" * 12, mine.secret)):
                join = Join(invite=invite, secret=secret, worker=name(), own_secret="x" * 43)
                with pytest.raises(InviteRefused, match="no such invitation"):
                    await ask(bus, "enroll", "join", join, Joined)
            with pytest.raises(AuthRefused):
                await ask(bus, "enroll", "invites", Nothing(), Nothing)
        finally:
            await bus.close()
