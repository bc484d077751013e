import os
import stat

import pytest

from claude_vm.drivers.errors import DriverError
from claude_vm.drivers.images.npm_config import NpmRegistry, find_registry

ANY = "http://any.example/"
SCOPED = "https://scoped.example/npm/"


@pytest.fixture
def home(tmp_path):
    return tmp_path


def npmrc(home, text):
    (home / ".npmrc").write_text(text)


def environment(home, **more):
    """Neither npm nor the host's own files are reached from here."""
    return {"HOME": str(home), "PATH": str(home), "npm_config_globalconfig": str(home / "global")} | more


@pytest.mark.parametrize("name", ["npm_config_registry", "NPM_CONFIG_REGISTRY", "npm_config_REGISTRY"])
def test_the_environment_names_the_registry_in_any_case(home, name):
    npmrc(home, "registry=http://other.example")
    assert find_registry(environment(home, **{name: ANY})).address == ANY


def test_the_scopes_registry_wins_over_the_general_one(home):
    npmrc(home, f"@anthropic-ai:registry = {SCOPED}\n@other:registry=http://x.example\n")
    found = find_registry(environment(home, npm_config_registry=ANY))
    assert (found.address, found.named_by) == (SCOPED, str(home / ".npmrc"))


def test_the_users_file_wins_over_the_global_one(home):
    (home / "global").write_text("registry=http://global.example\n")
    assert find_registry(environment(home)).address == "http://global.example/"
    npmrc(home, f"registry={ANY}")
    assert find_registry(environment(home)).address == ANY


def test_the_prefix_has_a_global_file(home):
    (home / "etc").mkdir()
    (home / "etc" / "npmrc").write_text(f"registry={ANY}")
    assert find_registry({"HOME": "/nowhere", "PATH": "", "PREFIX": str(home)}).address == ANY


def test_another_users_file_can_be_named(home):
    (home / "mine").write_text(f"registry={ANY}")
    assert find_registry(environment(home, npm_config_userconfig=str(home / "mine"))).address == ANY


def test_a_projects_own_file_is_not_read(home, monkeypatch):
    (home / "project").mkdir()
    (home / "project" / ".npmrc").write_text("registry=http://evil.example")
    monkeypatch.chdir(home / "project")
    with pytest.raises(DriverError):
        find_registry(environment(home))


@pytest.mark.parametrize(
    "line",
    [
        'registry="http://any.example"',
        "registry = 'http://any.example/'",
        "  registry=http://any.example ; a comment",
        "; registry=http://x.example\n# registry=http://y.example\n[section]\nregistry=http://any.example",
        "registry=http://${HOSTNAME_OF_IT}",
    ],
)
def test_the_spellings_of_npmrc_are_understood(home, line):
    npmrc(home, line)
    assert find_registry(environment(home, HOSTNAME_OF_IT="any.example")).address == ANY


def test_npm_is_asked_when_no_file_names_a_registry(home):
    npm = home / "npm"
    npm.write_text(
        "#!/bin/sh\n"
        '[ "$(pwd)" = / ] || exit 1\n'
        '[ -z "$SECRET" ] || exit 1\n'
        'case "$*" in "config get @anthropic-ai:registry") echo undefined;; '
        f'"config get registry") echo {ANY};; esac\n'
    )
    npm.chmod(npm.stat().st_mode | stat.S_IXUSR)
    found = find_registry(environment(home, PATH=f"{home}:{os.defpath}", SECRET="x"))
    assert (found.address, found.named_by) == (ANY, "npm config")


def test_without_any_name_the_error_says_how_to_give_one(home):
    with pytest.raises(DriverError, match="no npm registry") as caught:
        find_registry(environment(home))
    assert "npm_config_registry" in caught.value.hint


@pytest.mark.parametrize(
    "address", ["file:///etc", "nonsense", "http://", "http://a b/", "http://[::1", "http://a:x/"]
)
def test_what_is_no_http_address_is_refused_and_not_repeated(home, address):
    with pytest.raises(DriverError, match="not an http") as caught:
        find_registry(environment(home, npm_config_registry=address))
    assert address not in str(caught.value)


def test_credentials_are_not_shown():
    registry = NpmRegistry("https://me:pw@r.example/", "x", {"//r.example/:_authToken": "s3cret"})
    assert "s3cret" not in repr(registry)
    assert "pw" not in repr(registry)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://r.example/npm/pkg", "Bearer near"),
        ("https://r.example/npm/a/b.tgz", "Bearer near"),
        ("https://r.example/other/b.tgz", "Bearer far"),
        ("https://r.example:444/npm/pkg", None),
        ("https://r.example.evil/npm/pkg", None),
        ("https://basic.example/x", "Basic dTpw"),
        ("https://elsewhere.example/r.example/npm/", None),
    ],
)
def test_a_token_belongs_to_the_beginning_of_an_address(url, expected):
    settings = {
        "//r.example/npm/:_authToken": "near",
        "//r.example/:_authToken": "far",
        "//basic.example/:_auth": "dTpw",
        "_authToken": "nobody",
    }
    assert NpmRegistry("https://r.example/npm/", "x", settings).authorization(url) == expected
