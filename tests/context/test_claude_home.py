import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_vm.context.claude_home import claude_json, home_files, session_environment
from claude_vm.context.loopback import guest_proxies, guest_url, is_loopback

HOST = "10.0.2.2"
KEY = "sk-ant-api03-" + "0123456789" * 9 + "_the-last-20-letters"


def written(files):
    return {file.path: json.loads(file.data) for file in files if file.path.endswith(".json")}


def test_every_question_is_answered():
    files = written(
        home_files(trusted=["/p", "/p/sub"], environment={"ANTHROPIC_API_KEY": KEY}, version="2.1.0")
    )
    state = files[".claude.json"]
    assert state["hasCompletedOnboarding"] is True
    assert state["theme"] == "dark"
    assert {path: entry["hasTrustDialogAccepted"] for path, entry in state["projects"].items()} == {
        "/p": True,
        "/p/sub": True,
    }
    assert state["customApiKeyResponses"] == {"approved": ["_the-last-20-letters"], "rejected": []}
    assert files[".claude/settings.json"]["skipDangerousModePermissionPrompt"] is True


def test_claude_is_told_what_is_unusual_in_its_machine():
    files = home_files(trusted=[], environment={}, version=None, instructions="no FIFOs")
    assert [(f.path, f.data) for f in files if f.path.endswith(".md")] == [(".claude/CLAUDE.md", b"no FIFOs")]


def test_only_the_end_of_the_key_is_written():
    data = b"".join(
        file.data for file in home_files(trusted=["/p"], environment={"ANTHROPIC_API_KEY": KEY}, version=None)
    )
    assert KEY[-20:].encode() in data
    assert KEY[-21:].encode() not in data


def test_the_files_belong_to_the_user_alone():
    for file in home_files(trusted=[], environment={}, version=None):
        assert (file.mode, file.owner) == (0o600, "user")
        assert not file.path.startswith("/")


def test_without_a_key_none_is_approved():
    assert "customApiKeyResponses" not in claude_json(trusted=["/p"], api_key=None)
    assert "customApiKeyResponses" not in claude_json(trusted=["/p"], api_key="")


def test_a_short_key_is_approved_whole():
    assert claude_json(trusted=[], api_key="short")["customApiKeyResponses"]["approved"] == ["short"]


def test_a_directory_with_bytes_that_are_no_text_survives():
    path = "/p/" + b"\xff".decode("utf-8", "surrogateescape")
    state, *_ = home_files(trusted=[path], environment={}, version=None)
    assert path in json.loads(state.data)["projects"]


def test_credentials_are_passed_when_they_are_set_and_nothing_else_is():
    client = {
        "ANTHROPIC_API_KEY": "a",
        "ANTHROPIC_AUTH_TOKEN": "b",
        "CLAUDE_CODE_OAUTH_TOKEN": "c",
        "ANTHROPIC_BASE_URL": "http://127.0.0.1:8000/v1?x=1",
        "AWS_SECRET_ACCESS_KEY": "no",
        "PATH": "/no",
    }
    assert session_environment(client, HOST) == {
        "ANTHROPIC_API_KEY": "a",
        "ANTHROPIC_AUTH_TOKEN": "b",
        "CLAUDE_CODE_OAUTH_TOKEN": "c",
        "ANTHROPIC_BASE_URL": "http://10.0.2.2:8000/v1?x=1",
        "DISABLE_AUTOUPDATER": "1",
        "CLAUDE_CODE_DISABLE_AGENT_VIEW": "1",
        "NODE_EXTRA_CA_CERTS": "/etc/ssl/certs/ca-certificates.crt",
    }


def test_an_empty_variable_counts_as_unset():
    assert "ANTHROPIC_API_KEY" not in session_environment({"ANTHROPIC_API_KEY": ""}, HOST)
    assert "ANTHROPIC_BASE_URL" not in session_environment({"ANTHROPIC_BASE_URL": ""}, HOST)


def test_root_is_told_that_it_is_in_a_sandbox():
    assert session_environment({}, HOST, user="root")["IS_SANDBOX"] == "1"
    assert "IS_SANDBOX" not in session_environment({}, HOST)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8000", "http://10.0.2.2:8000"),
        ("http://127.3.4.5/path", "http://10.0.2.2/path"),
        ("https://localhost", "https://10.0.2.2"),
        ("HTTP://LocalHost.:80/x", "HTTP://10.0.2.2:80/x"),
        ("http://api.localhost/x", "http://10.0.2.2/x"),
        ("http://[::1]:8000/a?b#c", "http://10.0.2.2:8000/a?b#c"),
        ("http://[::ffff:127.0.0.1]/", "http://10.0.2.2/"),
        ("http://0.0.0.0:1/", "http://10.0.2.2:1/"),
        ("http://127.1:1/", "http://10.0.2.2:1/"),
        ("http://2130706433/", "http://10.0.2.2/"),
        ("http://user:p@ss:w@127.0.0.1:8000/x", "http://user:p@ss:w@10.0.2.2:8000/x"),
        ("127.0.0.1:3128", "10.0.2.2:3128"),
        ("localhost", "10.0.2.2"),
        ("socks5h://localhost:1080", "socks5h://10.0.2.2:1080"),
        ("http://127.0.0.1?x", "http://10.0.2.2?x"),
        # not the loopback
        ("https://api.example/127.0.0.1", "https://api.example/127.0.0.1"),
        ("https://127.0.0.1.example", "https://127.0.0.1.example"),
        ("https://localhost.example", "https://localhost.example"),
        ("https://localhost@api.example", "https://localhost@api.example"),
        ("https://192.168.0.1:80", "https://192.168.0.1:80"),
        ("http://[fe80::1]/", "http://[fe80::1]/"),
        ("http://127.0.0.1:x/", "http://127.0.0.1:x/"),
        ("", ""),
        ("http://", "http://"),
    ],
)
def test_only_the_host_of_a_loopback_address_is_replaced(url, expected):
    assert guest_url(url, HOST) == expected


def test_a_host_address_of_ipv6_gets_its_brackets():
    assert guest_url("http://localhost:1/", "fec0::2") == "http://[fec0::2]:1/"


@given(st.text())
def test_any_text_at_all_can_be_rewritten_and_only_once(url):
    once = guest_url(url, HOST)
    assert guest_url(once, HOST) == once


@given(st.ip_addresses(network="127.0.0.0/8"))
def test_the_whole_loopback_network_is_loopback(address):
    assert is_loopback(str(address))


@given(st.ip_addresses(v=4).filter(lambda a: not a.is_loopback and not a.is_unspecified))
def test_no_other_address_is(address):
    assert not is_loopback(str(address))


def test_proxies_are_passed_in_the_case_in_which_they_are_set():
    client = {
        "http_proxy": "http://localhost:3128",
        "HTTPS_PROXY": "http://proxy.example:1",
        "NO_PROXY": "a.example",
    }
    assert guest_proxies(client, HOST) == {
        "http_proxy": "http://10.0.2.2:3128",
        "HTTPS_PROXY": "http://proxy.example:1",
        "NO_PROXY": "a.example,10.0.2.2",
    }


def test_the_host_is_reached_without_the_proxy():
    found = guest_proxies({"https_proxy": "http://proxy.example:1"}, HOST)
    assert found["no_proxy"] == found["NO_PROXY"] == "localhost,127.0.0.1,::1,10.0.2.2"


@pytest.mark.parametrize("value", ["*", "a, 10.0.2.2"])
def test_an_exception_that_covers_the_host_is_left_alone(value):
    assert guest_proxies({"all_proxy": "socks5://p:1", "no_proxy": value}, HOST)["no_proxy"] == value


def test_without_a_proxy_there_are_no_exceptions_either():
    assert guest_proxies({"no_proxy": "a.example", "http_proxy": ""}, HOST) == {}
