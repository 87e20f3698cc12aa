"""The wire, byte for byte: a change of any contract shows here first. And what no contract lets in.

`golden/` holds what this version writes; versions that follow must still read it. To add a case, write its
value below and its bytes there; never change bytes that a released version wrote.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgpack
import pytest
from fedbus_schemas.base import Wire, is_token
from fedbus_schemas.log import Entry, Member, decode_entry, encode_entry
from fedbus_schemas.messages import (
    Beat,
    Progress,
)
from fedbus_schemas.plan import Plan
from fedbus_schemas.roster import (
    CreateInvite,
    Join,
)
from fedbus_schemas.update import (
    MAX_CHUNKS,
    ChunkHeader,
    EvaluationReport,
    ModelManifest,
    UpdateManifest,
)
from pydantic import TypeAdapter, ValidationError
from support.contracts import ENTRIES, ENTRY, FULL, JOIN, JSON, PACKED, UPDATE

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", JSON)
def test_json_contracts(name: str) -> None:
    written = (GOLDEN / f"{name}.json").read_bytes().rstrip(b"\n")
    assert JSON[name].model_dump_json(by_alias=True).encode() == written
    assert type(JSON[name]).model_validate_json(written) == JSON[name]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.kind)
def test_log_entries_are_those_bytes(entry: Entry) -> None:
    written = (GOLDEN / f"log-{entry.kind}.json").read_bytes().rstrip(b"\n")
    assert encode_entry(entry) == written
    assert decode_entry(written) == entry


@pytest.mark.parametrize("name", PACKED)
def test_packed_contracts(name: str) -> None:
    written = bytes.fromhex((GOLDEN / f"{name}.hex").read_text())
    assert PACKED[name].pack() == written
    assert type(PACKED[name]).unpack(written) == PACKED[name]


def test_digests_are_golden() -> None:
    golden = json.loads((GOLDEN / "digests.json").read_text())
    assert golden == {
        "plan-short": Plan(task="digits").digest(),
        "plan-full": FULL.digest(),
        **{name: manifest.digest() for name, manifest in PACKED.items()},
    }


def test_every_golden_file_is_checked() -> None:
    expected = {f"{n}.json" for n in JSON} | {f"{n}.hex" for n in PACKED} | {"digests.json"}
    assert {path.name for path in GOLDEN.iterdir()} == expected


# What is refused

NO_NAMES = ["", "a.b", "*", ">", "a b", "a\n", "a\t", "-a", "_a", "é", "a" * 65, "a/b", "a:b", "$JS", "a\x00"]


@pytest.mark.parametrize("name", NO_NAMES)
def test_no_name_can_reach_into_a_subject(name: str) -> None:
    assert not is_token(name)
    cases: list[tuple[Wire, list[str]]] = [
        (ENTRIES[2], ["worker", "node", "attempt", "code"]),
        (ENTRIES[3], ["worker", "node", "code"]),
        (JSON["beat"], ["worker", "incarnation"]),
        (JSON["progress"], ["worker", "node", "run"]),
        (JSON["announcement"], ["run"]),
        (JSON["run-record"], ["name"]),
        (JSON["start-run"], ["name"]),
        (JSON["lease-holder"], ["token"]),
        (ENTRY, ["worker", "site", "incarnation"]),
        (JOIN, ["invite", "worker"]),
        (JSON["ask-why"], ["worker", "run"]),
        (UPDATE, ["run", "worker", "node", "attempt", "codec"]),
        (Member(worker="w"), ["worker", "node"]),
    ]
    for value, names in cases:
        for field in names:
            with pytest.raises(ValidationError) as caught:
                type(value).model_validate(value.model_dump(by_alias=True) | {field: name})
            assert caught.value.errors()[0]["loc"] == (field,)


@pytest.mark.parametrize("name", ["a", "0", "run-0001", "host_1-2", "A" * 64])
def test_names(name: str) -> None:
    assert is_token(name)
    assert Member(worker=name).worker == name


@pytest.mark.parametrize("name", JSON)
def test_unknown_keys_are_refused_at_every_depth(name: str) -> None:
    value = JSON[name]
    plain = value.model_dump(by_alias=True)
    with pytest.raises(ValidationError, match="Extra inputs"):
        type(value).model_validate(plain | {"unknown": 1})
    for key, inner in plain.items():
        if isinstance(getattr(value, key, None), Wire):
            with pytest.raises(ValidationError):
                type(value).model_validate(plain | {key: inner | {"unknown": 1}})


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1", '"x"', "null", "[]"])
@pytest.mark.parametrize("key", ["at", "weight", "metric"])
def test_numbers_that_are_none(key: str, number: str) -> None:
    text = encode_entry(ENTRIES[1]).decode()
    old = {"at": '"at":1000001.0', "weight": '"weight":359.0', "metric": '"loss":0.25'}[key]
    assert text.count(old) == 1
    bad = text.replace(old, old.rpartition(":")[0] + ":" + number)
    if key == "metric" and number == "-1":
        assert decode_entry(bad.encode()).kind == "accepted"
        return
    with pytest.raises(ValidationError):
        decode_entry(bad.encode())


HOSTILE: dict[str, dict[str, Any]] = {
    "no chunk": {"chunks": []},
    "chunk is no digest": {"chunks": ["0" * 63]},
    "upper-case digest": {"chunks": ["A" * 64]},
    "digest and a newline": {"chunks": ["0" * 64 + "\n"]},
    "no examples": {"num_examples": 0},
    "examples are not whole": {"num_examples": 1.5},
    "examples are text": {"num_examples": "many"},
    "metric is NaN": {"metrics": {"loss": float("nan")}},
    "metric is infinite": {"metrics": {"loss": float("inf")}},
    "long metric name": {"metrics": {"l" * 65: 1.0}},
    "too many metrics": {"metrics": {str(i): 1.0 for i in range(65)}},
    "negative round": {"round": -1},
    "round too high": {"round": 10_000_001},
    "no size": {"size_bytes": 0},
    "unknown key": {"more": 1},
    "negative shape": {"table": [{"name": "w", "shape": [-1], "dtype": "float32"}]},
    "too many dimensions": {"table": [{"name": "w", "shape": [1] * 17, "dtype": "float32"}]},
    "no dtype": {"table": [{"name": "w", "shape": [1], "dtype": "object"}]},
    "nameless tensor": {"table": [{"name": "", "shape": [1], "dtype": "float32"}]},
    "unknown group": {"table": [{"name": "w", "shape": [1], "dtype": "float32", "group": "x"}]},
    "body is a list": {"body": [1]},
    "worker is a number": {"worker": 7},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_manifests(case: str) -> None:
    packed = msgpack.packb(UPDATE.model_dump() | HOSTILE[case])
    with pytest.raises(ValidationError):
        UpdateManifest.unpack(packed)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x80",
        b"\x90",
        b"\x01",
        UPDATE.pack()[:-1],
        UPDATE.pack() + b"\x00",
        b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\x81\x01\x02",
        b"\x81\xa1\xff\x02",
        b"\xd4\x05\x00",
        b"\xd6\xff\x00\x00\x00\x00",
        b"\xc7\x00\x05",
        msgpack.packb(["x"] * (MAX_CHUNKS + 1)),
        msgpack.packb({str(i): 1 for i in range(300)}),
        msgpack.packb(UPDATE.model_dump() | {"attempt": "a" * 5000}),
    ],
    ids=range(19),
)
def test_bytes_that_are_no_manifest_are_a_value_error_and_nothing_else(data: bytes) -> None:
    for contract in (UpdateManifest, ModelManifest, EvaluationReport):
        with pytest.raises(ValueError):  # noqa: PT011  # the contract: that class, whatever the reason
            contract.unpack(data)


@pytest.mark.parametrize("key", ["chunks", "table"])
def test_a_list_of_mistakes_is_one_mistake(key: str) -> None:
    """A message of one MiB can hold a million of them, and each would cost a kilobyte to report."""
    with pytest.raises(ValidationError) as caught:
        UpdateManifest.unpack(msgpack.packb(UPDATE.model_dump() | {key: [1] * 50_000}))
    assert caught.value.error_count() == 1


@pytest.mark.parametrize(
    "changes", [{"codec": "a.b"}, {"offset": -1}, {"count": 0}, {"offset": 1.5}, {"blosc": "maybe"}, {"x": 1}]
)
def test_hostile_chunk_headers(changes: dict[str, Any]) -> None:
    header = {"codec": "int8", "offset": 0, "count": 1, "blosc": True}
    assert ChunkHeader.model_validate(header).blosc
    with pytest.raises(ValidationError):
        ChunkHeader.model_validate(header | changes)


@pytest.mark.parametrize(
    ("contract", "changes"),
    [
        (Beat, {"capabilities": {"tasks": ["t"] * 1001, "codecs": []}}),
        (Beat, {"capabilities": {"tasks": [], "codecs": ["c"] * 101}}),
        (Beat, {"labels": {str(i): "x" for i in range(65)}}),
        (Beat, {"labels": {"k": "v" * 257}}),
        (Beat, {"at": float("nan")}),
        (Progress, {"fraction": 1.01}),
        (Progress, {"fraction": float("nan")}),
        (Progress, {"failed": "x" * 2001}),
        (Progress, {"phase": "sleep"}),
        (Join, {"invite": "0123456789AB"}),
        (Join, {"secret": "short"}),
        (Join, {"own_secret": "$2a$" + "x" * 40}),
        (Join, {"own_secret": "x" * 40 + "\n"}),
        (Join, {"worker": "a.b"}),
        (CreateInvite, {"site": "*"}),
        (CreateInvite, {"uses": 0}),
        (CreateInvite, {"uses": 1001}),
        (CreateInvite, {"expires_s": 0}),
        (CreateInvite, {"expires_s": float("inf")}),
        (CreateInvite, {"labels": {str(i): "x" for i in range(33)}}),
    ],
)
def test_hostile_worker_messages(contract: type[Wire], changes: dict[str, Any]) -> None:
    sound = next(value for value in JSON.values() if type(value) is contract).model_dump()
    with pytest.raises(ValidationError):
        contract.model_validate(sound | changes)


def test_contracts_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        UPDATE.worker = "w2"  # type: ignore[misc]


def test_schemas_can_be_exported() -> None:
    for value in [*JSON.values(), *PACKED.values()]:
        assert TypeAdapter(type(value)).json_schema()["type"] == "object"
