"""Where spans go, as OpenTelemetry's variables say it."""

from __future__ import annotations

import pytest
from fedbus.base.errors import ConfigError
from fedbus.telemetry.endpoint import read_endpoint

BASE, TRACES, HEADERS = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_HEADERS",
)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({BASE: "http://jaeger:4318"}, "http://jaeger:4318/v1/traces"),
        ({BASE: "http://jaeger:4318/"}, "http://jaeger:4318/v1/traces"),
        ({BASE: "https://otel.example/in"}, "https://otel.example:443/in/v1/traces"),
        ({BASE: "http://[::1]:4318"}, "http://[::1]:4318/v1/traces"),
        ({TRACES: "http://h/here", BASE: "http://other"}, "http://h:80/here"),
        ({TRACES: "", BASE: "http://other"}, "http://other:80/v1/traces"),
    ],
)
def test_addresses(variables: dict[str, str], said: str) -> None:
    assert str(read_endpoint(variables)) == said


def test_none_is_none() -> None:
    assert read_endpoint({}) is None
    assert read_endpoint({HEADERS: "a=b"}) is None


def test_headers_are_decoded_and_do_not_show() -> None:
    found = read_endpoint({BASE: "http://h", HEADERS: "api-key=s%20ecret, x-scope = y"})
    assert found is not None
    assert found.headers == {"api-key": "s ecret", "x-scope": "y"}
    assert "ecret" not in repr(found)


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({BASE: "jaeger:4318"}, BASE),
        ({BASE: "grpc://jaeger:4317"}, BASE),
        ({BASE: "http://"}, BASE),
        ({BASE: "http://h:99999"}, BASE),
        ({BASE: "http://[::1"}, BASE),
        ({TRACES: "http://user:secret@h"}, TRACES),
        ({TRACES: "http://h/a b"}, TRACES),
        ({BASE: "http://h", HEADERS: "secret"}, HEADERS),
        ({BASE: "http://h", HEADERS: "k=secret%0d%0ax: y"}, HEADERS),
        ({BASE: "http://h", HEADERS: "a b=secret"}, HEADERS),
    ],
)
def test_what_is_wrong_is_named_and_nothing_secret_told(variables: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        read_endpoint(variables)
    assert "secret" not in str(caught.value)
