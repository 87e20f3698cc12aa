"""What the planner posts to workers: announcements to all, notices to one."""

from __future__ import annotations

from fedbus.bus import Bus
from fedbus.bus.store import WRONG_LAST, JetStreamError, leader_get, put
from fedbus_schemas import subjects
from fedbus_schemas.messages import Announcement, InboxNotices, Notice
from pydantic import ValidationError

# An inbox is a mailbox, not a history: the newest notices are enough.
MOST_NOTICES = 20
# Every worker reads all announcements at each beat: what is over must not pile up.
CLOSED_TTL_S = 86400


async def post_announcement(bus: Bus, announcement: Announcement) -> None:
    """Make this the run's last announcement. That of a closed round goes by itself after a day."""
    data = announcement.model_dump_json(by_alias=True).encode()
    ttl_s = CLOSED_TTL_S if announcement.state == "closed" else None
    await put(bus, subjects.announce(announcement.run), data, ttl_s=ttl_s)


async def post_notice(bus: Bus, worker: str, notice: Notice) -> None:
    """Add a notice to a worker's inbox; one that is there already is not repeated."""
    subject = subjects.inbox(worker)
    while True:
        found = await leader_get(bus, subjects.INBOX, {"last_by_subj": subject})
        seq, notices = (0, []) if found is None else (found[0], _read(found[2]))
        if notice in notices:
            return
        inbox = InboxNotices(notices=[*notices, notice][-MOST_NOTICES:])
        try:
            await put(bus, subject, inbox.model_dump_json().encode(), expected=seq)
            return
        except JetStreamError as error:
            if error.err_code != WRONG_LAST:
                raise


def _read(data: bytes) -> list[Notice]:
    try:
        return InboxNotices.model_validate_json(data).notices
    except ValidationError:
        return []  # we are its only writer: an unreadable one is from another version, and is replaced
