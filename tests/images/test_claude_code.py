import hashlib
import importlib.util
import os
import stat
import tempfile
import threading
from pathlib import Path

import anyio
import pytest

from claude_vm.drivers.errors import BadImageError, DownloadError, DriverError
from claude_vm.drivers.images import claude_code, npm_package
from claude_vm.drivers.images.claude_code import ensure_claude_code, remove_downloads
from claude_vm.drivers.images.phases import ImagePhase

pytestmark = pytest.mark.anyio


def _load():
    specification = importlib.util.spec_from_file_location(
        "npm_registry", Path(__file__).with_name("npm_registry.py")
    )
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


made = _load()


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def registry():
    with made.Registry() as registry:
        yield registry


@pytest.fixture
def get(registry, tmp_path):
    """Call with the loopback registry and nothing of the real environment."""

    async def call(version=None, *, environ=None, **options):
        env = {"npm_config_registry": registry.url, "HOME": str(tmp_path)} | (environ or {})
        return await ensure_claude_code(
            tmp_path / "cache",
            told.append_pair,
            environ=env,
            version=version,
            architecture="x86_64",
            **options,
        )

    told = _Told()
    call.told = told
    call.folder = tmp_path / "cache" / "claude-code"
    return call


class _Told(list):
    def append_pair(self, phase, detail):
        self.append((phase, detail))


def left_in(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


async def test_the_newest_version_is_downloaded_verified_and_made_executable(registry, get):
    registry.publish("2.1.9", made.package(made.program("old")))
    registry.publish("2.1.10", made.package(made.program("new")))
    found = await get()
    assert found.version == "2.1.10"
    assert found.binary.read_bytes() == made.program("new")
    assert found.sha512 == hashlib.sha512(made.program("new")).hexdigest()
    assert stat.S_IMODE(found.binary.stat().st_mode) == 0o755
    assert left_in(get.folder) == ["2.1.10-x64"]
    assert any("%" in detail for _, detail in get.told)
    record = (found.binary.parent / "claude.json").read_text()
    assert made.integrity(made.package(made.program("new"))) in record


async def test_what_was_downloaded_can_be_removed_but_not_from_somebody_elses_cache(registry, get, tmp_path):
    registry.publish("2.1.0")
    binary = (await get()).binary
    cache = binary.parents[2]
    (tmp_path / "link").symlink_to(cache)
    assert await remove_downloads(tmp_path / "link") == []
    assert binary.exists()
    assert await remove_downloads(cache) == [f"Claude Code {binary.parent.name}"]
    assert not binary.exists()
    assert await remove_downloads(cache) == []
    assert await remove_downloads(tmp_path / "nothing") == []
    assert (await get()).binary.exists()


async def test_a_second_call_downloads_nothing(registry, get):
    registry.publish("2.1.0")
    first = await get()
    registry.tarballs.clear()
    assert await get() == first


async def test_a_named_version_that_is_cached_asks_nobody(registry, get):
    registry.publish("2.1.0")
    first = await get("2.1.0")
    registry.requests.clear()
    assert await get("2.1.0") == first
    assert registry.requests == []


async def test_a_dist_tag_is_followed(registry, get):
    registry.publish("2.0.0")
    registry.publish("2.1.0")
    registry.documents[made.MAIN]["dist-tags"]["stable"] = "2.0.0"
    assert (await get("stable")).version == "2.0.0"


async def test_the_main_package_says_which_platform_version_belongs_to_it(registry, get):
    registry.publish("2.0.0")
    registry.publish("2.1.0", main=False)  # the platform package is ahead
    assert (await get()).version == "2.0.0"


async def test_a_registry_without_the_main_package_will_do(registry, get):
    registry.publish("2.0.0", main=False)
    assert (await get()).version == "2.0.0"


async def test_a_wrong_hash_is_refused_and_nothing_is_kept(registry, get):
    registry.publish("2.1.0", integrity=made.integrity(b"something else"))
    with pytest.raises(BadImageError, match="SHA-512") as caught:
        await get()
    assert "published" in caught.value.detail
    assert caught.value.hint
    assert left_in(get.folder) == []


async def test_a_wrong_hash_is_refused_even_when_an_older_version_is_cached(registry, get):
    registry.publish("2.1.0")
    await get()
    registry.publish("2.1.1", integrity=made.integrity(b"something else"))
    with pytest.raises(BadImageError):
        await get()
    assert left_in(get.folder) == ["2.1.0-x64"]


async def test_nothing_of_a_tarball_is_looked_at_before_its_hash_is_checked(registry, get, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("unpacked before it was checked")

    monkeypatch.setattr(claude_code, "extract_program", never)
    registry.publish("2.1.0", integrity=made.integrity(b"something else"))
    with pytest.raises(BadImageError, match="SHA-512"):
        await get()


@pytest.mark.parametrize(
    "said", ["", "sha1-2jmj7l5rSw0yVb/vlWAYkK/YBwk=", "sha512-", "sha512-AAAA", "sha512-%%%%"]
)
async def test_a_package_without_a_published_sha512_is_refused(registry, get, said):
    registry.publish("2.1.0", integrity=said)
    with pytest.raises(BadImageError, match="no SHA-512"):
        await get()


async def test_the_sha512_is_found_among_other_hashes_and_options(registry, get):
    data = made.package()
    registry.publish("2.1.0", data, integrity=f"sha1-2jmj7l5rSw0yVb/vlWAYkK/YBwk= {made.integrity(data)}?x=y")
    assert (await get()).version == "2.1.0"


async def test_a_download_that_is_cut_off_is_an_error_and_leaves_nothing(registry, get):
    registry.publish("2.1.0")
    registry.truncate = 60
    with pytest.raises(DownloadError) as caught:
        await get()
    assert "missing" in caught.value.detail or "ncomplete" in caught.value.detail
    assert left_in(get.folder) == []


async def test_a_tarball_over_the_limit_is_refused(registry, get, monkeypatch):
    monkeypatch.setattr(claude_code, "MAX_TARBALL_BYTES", 100)
    registry.publish("2.1.0")
    with pytest.raises(BadImageError, match="larger than 100 bytes"):
        await get()
    assert left_in(get.folder) == []


async def test_a_description_over_the_limit_is_refused(registry, get, monkeypatch):
    monkeypatch.setattr(npm_package, "MAX_METADATA_BYTES", 100)
    registry.publish("2.1.0")
    with pytest.raises(BadImageError, match="larger than 100 bytes"):
        await get()


async def test_a_program_that_unpacks_to_more_than_the_limit_is_refused(registry, get, monkeypatch):
    monkeypatch.setattr(npm_package, "MAX_PROGRAM_BYTES", 64 * 1024)
    registry.publish("2.1.0", made.tarball(made.member("package/filler", bytes(1024 * 1024))))
    with pytest.raises(BadImageError, match="too large when unpacked"):
        await get()
    assert left_in(get.folder) == []


@pytest.mark.parametrize(
    "members",
    [
        [],
        [made.member("package/other", made.program())],
        [made.member("package/claude", type=b"2", linkname="/etc/passwd")],
        [made.member("package/claude", type=b"1", linkname="package/other")],
        [made.member("package/claude", type=b"6")],
        [made.member("package/claude", type=b"5")],
        [made.member("package/../../claude", made.program())],
        [made.member("/package/claude", made.program())],
        [made.member("package/claude", b"#!/bin/sh\n")],
        [made.member("package/claude", b"")],
        [made.member("package/claude", made.program(architecture="arm64"))],
    ],
    ids=[
        "empty",
        "other",
        "symlink",
        "hardlink",
        "fifo",
        "folder",
        "dots",
        "absolute",
        "script",
        "nothing",
        "arm",
    ],
)
async def test_a_tarball_without_the_program_as_a_regular_file_is_refused(registry, get, members):
    registry.publish("2.1.0", made.tarball(*members))
    with pytest.raises(BadImageError):
        await get()
    assert left_in(get.folder) == []


async def test_other_files_of_the_tarball_are_not_unpacked(registry, get, tmp_path):
    evil = made.member("../../../evil", b"evil")
    registry.publish("2.1.0", made.tarball(evil, made.member("package/claude", made.program(), mode=0o6777)))
    found = await get()
    assert stat.S_IMODE(found.binary.stat().st_mode) == 0o755
    assert sorted(path.name for path in found.binary.parent.iterdir()) == ["claude", "claude.json"]
    assert not list(tmp_path.rglob("evil"))


async def test_what_is_no_tarball_is_refused(registry, get):
    registry.publish("2.1.0", b"<html>please log in</html>")
    with pytest.raises(BadImageError, match="not a valid tarball"):
        await get()


async def test_a_version_without_a_package_for_this_platform_says_so(registry, get):
    registry.publish("2.1.0")
    registry.documents[made.MAIN]["versions"]["2.1.0"]["optionalDependencies"] = {}
    with pytest.raises(DriverError, match="no package for linux-x64") as caught:
        await get()
    assert caught.value.hint


async def test_a_platform_package_that_the_mirror_lacks_says_so(registry, get):
    registry.publish("2.1.0")
    del registry.documents[made.PLATFORM]
    with pytest.raises(DriverError, match="no package @anthropic-ai/claude-code-linux-x64"):
        await get()


async def test_an_unknown_version_says_so(registry, get):
    registry.publish("2.1.0")
    with pytest.raises(DriverError, match=r"no Claude Code 9\.9\.9"):
        await get("9.9.9")


@pytest.mark.parametrize("version", ["", "../x", "a b", "-x", "1.0/..", "x" * 100])
async def test_what_is_no_version_is_refused_before_anything_is_asked(registry, get, version):
    with pytest.raises(DriverError, match="not a version"):
        await get(version)
    assert registry.requests == []


async def test_a_version_that_would_leave_the_cache_is_refused(registry, get):
    registry.publish("2.1.0")
    registry.documents[made.PLATFORM]["versions"]["2.1.0"]["version"] = "../../2.1.0"
    with pytest.raises(BadImageError, match="no usable version"):
        await get()


@pytest.mark.parametrize("document", [b"<html>", b"[]", b"{}", b'{"versions": []}', b"\xff", b"[" * 100_000])
async def test_an_answer_that_is_no_description_is_refused(registry, get, document):
    registry.documents[made.MAIN] = document
    with pytest.raises(BadImageError, match="not an npm package description"):
        await get()


async def test_without_network_the_newest_cached_version_is_taken_and_said(registry, get):
    for version in ("2.1.9", "2.1.10"):
        registry.publish(version)
        await get()
    get.told.clear()
    found = await get(environ={"npm_config_registry": "http://127.0.0.1:9/"})
    assert found.version == "2.1.10"
    assert any("from the cache" in detail for _, detail in get.told)


async def test_without_network_and_cache_the_error_says_what_to_check(get):
    with pytest.raises(DownloadError) as caught:
        await get(environ={"npm_config_registry": "http://127.0.0.1:9/"})
    assert "proxy" in caught.value.hint
    assert "refused" in caught.value.detail


async def test_a_failing_registry_falls_back_to_the_cache(registry, get):
    registry.publish("2.1.0")
    first = await get()
    registry.status = 503
    assert await get() == first


async def test_a_damaged_program_in_the_cache_is_fetched_again(registry, get):
    registry.publish("2.1.0")
    found = await get()
    data = bytearray(found.binary.read_bytes())
    data[-1] ^= 1
    found.binary.write_bytes(data)
    assert (await get()).binary.read_bytes() == made.program()


async def test_a_damaged_record_in_the_cache_is_fetched_again(registry, get):
    registry.publish("2.1.0")
    found = await get()
    (found.binary.parent / "claude.json").write_text("{")
    assert (await get()) == found


async def test_what_a_killed_download_left_is_removed(registry, get):
    registry.publish("2.1.0")
    (get.folder / ".part-dead").mkdir(parents=True)
    (get.folder / ".part-dead" / "package.tgz").write_bytes(b"half")
    await get()
    assert left_in(get.folder) == ["2.1.0-x64"]


async def test_old_versions_are_removed_but_the_newest_three_stay(registry, get):
    for number in range(5):
        registry.publish(f"2.1.{number}")
        await get()
    assert left_in(get.folder) == ["2.1.2-x64", "2.1.3-x64", "2.1.4-x64"]
    assert (await get("2.1.0")).version == "2.1.0"  # asked for by name: kept beside them
    assert "2.1.0-x64" in left_in(get.folder)


async def test_two_at_once_download_once(registry, get):
    registry.publish("2.1.0")
    registry.gate = threading.Event()
    found = []

    async def one():
        found.append(await get())

    async with anyio.create_task_group() as group:
        group.start_soon(one)
        await anyio.to_thread.run_sync(registry.started.wait)
        group.start_soon(one)
        while (ImagePhase.CLAUDE, "waiting for another download") not in get.told:
            await anyio.lowlevel.checkpoint()
        registry.gate.set()
    assert found[0] == found[1]
    assert sum(path in registry.tarballs for path, _ in registry.requests) == 1


async def test_a_cancelled_download_leaves_nothing_and_frees_the_lock(registry, get):
    registry.publish("2.1.0", made.package(made.program(os.urandom(100_000).hex())))
    registry.gate = threading.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(get)
        await anyio.to_thread.run_sync(registry.started.wait)
        registry.stall = threading.Event()
        group.cancel_scope.cancel()
        registry.gate.set()
    assert not registry.finished.is_set()  # it ended between two pieces, not at the end
    assert left_in(get.folder) == []
    registry.stall.set()
    registry.gate = registry.stall = None
    assert (await get()).version == "2.1.0"


async def test_a_full_disk_is_told_with_what_to_do(registry, get, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(claude_code, "extract_program", full)
    registry.publish("2.1.0")
    with pytest.raises(DriverError, match="No space left") as caught:
        await get()
    assert "CLAUDE_VM_HOME" in caught.value.hint
    assert not isinstance(caught.value, DownloadError)
    assert left_in(get.folder) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this host has no /dev/full")
async def test_a_disk_that_fills_during_the_download_is_no_network_error(registry, get, monkeypatch):
    original = Path.open

    def opened(path, mode="r", *args, **kwargs):
        if path.name == "package.tgz" and "x" in mode:
            return original(Path("/dev/full"), "wb", buffering=0)
        return original(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", opened)
    registry.publish("2.1.0")
    with pytest.raises(DriverError, match="No space left") as caught:
        await get()
    assert not isinstance(caught.value, DownloadError)


async def test_an_architecture_without_claude_code_says_so(get):
    with pytest.raises(DriverError, match="riscv64"):
        await ensure_claude_code(get.folder, lambda *_: None, environ={}, architecture="riscv64")


async def test_the_token_goes_to_its_registry_and_to_nobody_else(registry, get, tmp_path):
    host = registry.url.removeprefix("http:")
    (tmp_path / ".npmrc").write_text(f"{host}:_authToken=${{TOKEN}}\n//elsewhere.example/:_authToken=other\n")
    registry.publish("2.1.0")
    await get(environ={"TOKEN": "s3cret"})
    assert {headers.get("Authorization") for _, headers in registry.requests} == {"Bearer s3cret"}
    assert "s3cret" not in repr(get.told)
    with made.Registry() as other:
        registry.redirect = other.url
        with pytest.raises(DriverError) as caught:
            await get("2.1.1", environ={"TOKEN": "s3cret"})
        assert other.requests
        assert all("Authorization" not in headers for _, headers in other.requests)
        assert "s3cret" not in f"{caught.value} {caught.value.hint}"


async def test_a_registry_that_wants_credentials_says_how_to_give_them(registry, get):
    registry.status = 401
    with pytest.raises(DownloadError, match="401") as caught:
        await get()
    assert "_authToken" in caught.value.hint


async def test_a_tarball_address_of_another_host_is_replaced_by_the_registrys_own(registry, get):
    registry.publish("2.1.0", tarball="http://registry.example/elsewhere.tgz")
    assert (await get()).version == "2.1.0"


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
async def test_a_redirect_away_from_http_is_not_followed(registry, get, target):
    registry.redirect = target
    with pytest.raises(DriverError):
        await get()


async def test_the_proxy_of_the_clients_environment_is_used_unless_no_proxy_names_the_host(registry, get):
    registry.publish("2.1.0")
    with made.Registry() as proxy:
        with pytest.raises(DriverError):
            await get(environ={"http_proxy": proxy.url})
        assert [path for path, _ in proxy.requests] == [f"/{made.MAIN}", f"/{made.PLATFORM}"]
        assert (
            await get(environ={"http_proxy": proxy.url, "no_proxy": "x.example, 127.0.0.1"})
        ).version == "2.1.0"
        assert len(proxy.requests) == 2


@pytest.mark.claude
@pytest.mark.timeout(600)
async def test_the_real_package_comes_from_the_users_own_registry_and_runs():
    with tempfile.TemporaryDirectory() as name:
        told = []
        try:
            found = await ensure_claude_code(
                Path(name), lambda *both: told.append(both), environ=dict(os.environ)
            )
        except DownloadError as error:
            if "CI" in os.environ:
                raise
            pytest.skip(f"the npm registry can't be reached: {error}")
        answer = await anyio.run_process(
            [str(found.binary), "--version"], env={"HOME": name, "PATH": os.environ["PATH"]}
        )
        assert answer.stdout.decode().startswith(found.version)
