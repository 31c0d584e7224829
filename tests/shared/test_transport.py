import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagcast_shared.errors import InvalidIdentifier
from flagcast_shared.transport import (
    Endpoint,
    contradiction,
    distrust,
    parse_alpn,
    parse_broker_url,
    parse_server_name,
    refusal,
)

TLS = Endpoint("h", 8883, uses_tls=True)


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("mqtt://broker", Endpoint("broker", 1883, uses_tls=False)),
        ("mqtt://broker/", Endpoint("broker", 1883, uses_tls=False)),
        ("mqtts://Broker.Example.com", Endpoint("broker.example.com", 8883, uses_tls=True)),
        (
            "mqtts://a1-ats.iot.eu-central-1.amazonaws.com:443",
            Endpoint("a1-ats.iot.eu-central-1.amazonaws.com", 443, True),
        ),
        ("ws://broker", Endpoint("broker", 80, uses_tls=False, path="/mqtt")),
        ("ws://broker:8083/", Endpoint("broker", 8083, uses_tls=False, path="/")),
        ("wss://broker", Endpoint("broker", 443, uses_tls=True, path="/mqtt")),
        ("wss://h/$iothub/websocket", Endpoint("h", 443, uses_tls=True, path="/$iothub/websocket")),
        ("mqtt://[::1]:1884", Endpoint("::1", 1884, uses_tls=False)),
        ("mqtt://[fe80::1%eth0]", Endpoint("fe80::1%eth0", 1883, uses_tls=False)),
    ],
)
def test_a_url_names_host_port_tls_and_path(url: str, endpoint: Endpoint) -> None:
    assert parse_broker_url(url) == endpoint


@pytest.mark.parametrize(
    "url",
    [
        "", "broker", "http://broker", "MQTT://broker", "mqtt://", "mqtt://:1883", "mqtt://h:0", "mqtt://h:65536", "mqtt://h:x",
        "mqtt://h/path", "mqtts://h?x=1", "mqtt://h#x", "ws://h/a b", "ws://h/a?token=1", "ws://h/\r\nX: 1", "mqtt://h\n",
        "mqtt://::1", "mqtt://bröker", "mqtt://a\u2028b",
    ],
)  # fmt: skip
def test_what_is_no_url_of_a_broker_is_refused_with_what_is_allowed(url: str) -> None:
    with pytest.raises(InvalidIdentifier, match="allowed is mqtt://HOST") as caught:
        parse_broker_url(url)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["mqtt://me:secret@h", "mqtts://secret@h", "ws://me:se/cret@h", "me:secret@h"]
)
def test_a_password_in_a_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(InvalidIdentifier, match=r"broker\.password_file") as caught:
        parse_broker_url(url)
    assert "secret" not in str(caught.value)
    assert "cret" not in str(caught.value)


@given(
    st.one_of(
        st.text(), st.from_regex(r"\A(mqtts?|wss?)://.*\Z"), st.from_regex(r"\Awss?://h(:[0-9]*)?/.*\Z")
    )
)
def test_any_text_is_an_endpoint_or_refused(text: str) -> None:
    try:
        endpoint = parse_broker_url(text)
    except InvalidIdentifier:
        return
    assert 1 <= endpoint.port <= 65_535
    # What stands in the first lines of an upgrade cannot end them.
    assert f"{endpoint.host}{endpoint.path}".isprintable()
    assert " " not in f"{endpoint.host}{endpoint.path}"
    assert bool(endpoint.path) == text.startswith("ws")


def test_names_for_the_handshake() -> None:
    assert (parse_server_name(""), parse_server_name("mqtt.example.com")) == ("", "mqtt.example.com")
    assert (parse_alpn(""), parse_alpn("x-amzn-mqtt-ca")) == ("", "x-amzn-mqtt-ca")
    for wrong in ("a:1", "a b", "a/b", "x" * 254, "ü"):
        with pytest.raises(InvalidIdentifier):
            parse_server_name(wrong)
    for wrong in ("a b", "x" * 256, "ü", "a\n"):
        with pytest.raises(InvalidIdentifier):
            parse_alpn(wrong)


def test_keys_that_go_together_are_left_alone() -> None:
    assert contradiction(TLS, ()) is None
    assert (
        contradiction(
            TLS, {"user", "password_file", "ca_file", "cert_file", "key_file", "alpn", "server_name"}
        )
        is None
    )
    assert contradiction(Endpoint("h", 1883, uses_tls=False), {"user"}) is None


@pytest.mark.parametrize(
    ("code", "do"),
    [
        (10, "renew it"),
        (9, "clock"),
        (62, "broker.server_name"),
        (64, "broker.url"),
        (18, "set broker.ca_file"),
        (19, "set broker.ca_file"),
        (20, "set broker.ca_file"),
        (23, "check broker.ca_file"),
    ],
)
def test_distrust_says_what_to_do(code: int, do: str) -> None:
    said = distrust("mqtt.example.com", code, "some reason")
    assert said.startswith("the certificate of mqtt.example.com is not trusted: some reason; ")
    assert do in said


@pytest.mark.parametrize(
    ("reason", "do"),
    [
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "set broker.cert_file"),
        ("SSLV3_ALERT_HANDSHAKE_FAILURE", "set broker.cert_file"),
        ("TLSV1_ALERT_UNKNOWN_CA", "does not take our certificate"),
        ("SSLV3_ALERT_CERTIFICATE_EXPIRED", "renew broker.cert_file"),
        ("SSLV3_ALERT_CERTIFICATE_REVOKED", "does not take our certificate"),
        ("SSLV3_ALERT_BAD_CERTIFICATE", "does not take our certificate"),
        ("TLSV1_ALERT_NO_APPLICATION_PROTOCOL", "does not take broker.alpn"),
        ("WRONG_VERSION_NUMBER", "speaks TLS on this port"),
        ("TLSV1_ALERT_PROTOCOL_VERSION", "check broker.url"),
    ],
)
def test_a_refusal_says_what_to_do(reason: str, do: str) -> None:
    said = refusal(reason)
    assert said.startswith(f"{reason}; ")
    assert do in said
