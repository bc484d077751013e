"""Ports to publish: what may be asked for, and how layers add up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_vm.context.config.layers import load_settings
from claude_vm.context.config.problems import ConfigError
from claude_vm.context.config.setting import Value
from claude_vm.context.ports import (
    AUTO,
    PortError,
    PortSpec,
    Publish,
    parse_port,
    parse_publish,
    plan_ports,
    refusal,
)


@pytest.fixture
def load(home):
    def loaded(text="", *flags):
        (home / ".claude-vm.toml").write_text(text)
        given = {"network.publish": Value(flags, "--publish")} if flags else {}
        return load_settings(flags=given, environ={}, home=home)

    return loaded


def planned(settings):
    return plan_ports(settings.published).words


def test_one_number_is_the_port_on_both_sides_and_two_are_host_and_guest():
    assert parse_port("3000") == PortSpec(guest=3000, host=3000)
    assert parse_port("8080:80") == PortSpec(guest=80, host=8080)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("80", "below 1024 on the host; write it as 8080:80"),
        ("1023:3000", "below 1024"),
        ("0", "not a port"),
        ("0:3000", "not a port"),
        ("3000:0", "not a port"),
        ("65536", "not a port"),
        ("99999:3000", "not a port"),
        ("22", "SSH"),
        ("2222:22", "never published"),
        ("2222:022", "never published"),
    ],
)
def test_a_port_that_must_not_be_published_is_refused_with_the_reason(text, said):
    with pytest.raises(PortError, match=said) as caught:
        parse_port(text)
    assert caught.value.code == "bad-port"
    assert "8080:80" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "3000:", ":3000", "a", "-1", "+3000", "3_000", "0.0.0.0:3000:3000", "127.0.0.1:3000"),
        *("3000/udp", "\u0663000", "3000 ", "3000\n", "1:2:3", "000003000"),
    ],
)
def test_what_is_no_specification_is_refused(text):
    with pytest.raises(PortError, match="not of this form"):
        parse_port(text)


@given(st.integers(-5, 70000), st.integers(-5, 70000))
def test_nothing_below_1024_and_never_ssh_whatever_is_asked_for(guest, host):
    if not refusal(guest, host):
        assert 1024 <= host <= 65535
        assert 1 <= guest <= 65535
        assert guest != 22


def test_each_pair_is_published_once_and_auto_beside_it():
    found = plan_ports([parse_port("3000"), AUTO, parse_port("8080:80"), parse_port("3000:3000")])
    assert found == Publish((PortSpec(3000, 3000), PortSpec(80, 8080)), auto=True)
    assert found.words == ["3000", "8080:80", "auto"]
    assert parse_publish(found.words).words == found.words


def test_two_ports_of_the_guest_on_one_of_the_host_are_refused_and_named():
    with pytest.raises(PortError, match=r"5000 would lead both to the guest's 5000 \(a\) and to its 80"):
        plan_ports([PortSpec(5000, 5000, "a"), PortSpec(80, 5000, "b")])


def test_words_that_mean_nothing_are_left_out_of_what_was_written_down():
    assert parse_publish(["auto", "22", "nonsense", "3000"]).words == ["3000", "auto"]


def test_without_anything_nothing_is_published(load):
    assert planned(load()) == []


def test_the_nearest_layer_says_what_is_published_and_tables_add_to_it(load):
    text = '[network]\npublish = "auto"\n[[ports]]\nguest = 80\nhost = 8080\n[[ports]]\nguest = 4000\n'
    assert planned(load(text)) == ["8080:80", "4000", "auto"]
    assert planned(load(text, "3000")) == ["3000", "8080:80", "4000"]
    assert planned(load(text, "3000", "auto")) == ["3000", "8080:80", "4000", "auto"]
    assert planned(load(text, "none")) == []
    assert planned(load('[network]\npublish = ["3000", "auto"]\n')) == ["3000", "auto"]
    assert planned(load('[network]\npublish = "none"\n')) == []


def test_each_port_says_who_asked_for_it(load):
    text = '[network]\npublish = ["5000"]\n[[ports]]\nguest = 81\nhost = 5000\n'
    with pytest.raises(PortError, match=r"toml:3: .*5000 \(.*toml:2\)"):
        plan_ports(load(text).published)


WRONG = (
    ('[network]\npublish = "all"', ("network.publish = 'all'", "not one of these words")),
    ("[network]\npublish = 3000", ("an integer, not an array",)),
    ("[network]\npublish = [3000]", ("item 1 is an integer, not a string",)),
    ('[network]\npublish = ["3000", "80"]', ("network.publish = '80'", "below 1024")),
    ('[network]\npublish = ["none", "3000"]', ("network.publish = 'none'", "can't be combined")),
    ('[network]\npublish = ["auto", "none"]', ("network.publish = 'none'", "can't be combined")),
    ("ports = 3", ("an integer, not an array",)),
    ("ports = [3]", ("port 1 is an integer, not a table",)),
    ("[[ports]]\nguest = 3000\n[[ports]]\nguest = 22\nhost = 2222", (":3: ports", "port 2 ", "SSH")),
    ("[[ports]]\nhost = 3000", ("needs a port number as guest",)),
    ("[[ports]]\nguest = true", ("needs a port number as guest",)),
    ("[[ports]]\nguest = 80", ("below 1024",)),
    ('[[ports]]\nguest = 3000\naddress = "0.0.0.0"', ("unknown key 'address'",)),
)


@pytest.mark.parametrize(("text", "parts"), WRONG)
def test_what_is_wrong_in_a_file_is_told_with_its_place(load, text, parts):
    with pytest.raises(ConfigError) as caught:
        load(text)
    (problem,) = caught.value.problems
    for part in (*parts, "~/.claude-vm.toml:"):
        assert part in str(problem)


def test_a_wrong_flag_is_told_in_the_one_report(load):
    with pytest.raises(ConfigError) as caught:
        load("[vm]\ncpus = 0\n", "3000", "80")
    first, second = caught.value.problems
    assert "vm.cpus" in str(first)
    assert "command line: --publish = '80': item 2" in str(second) or "'80'" in str(second)


@pytest.mark.parametrize("flags", [("none", "3000"), ("3000", "none"), ("none", "auto")])
def test_none_beside_another_flag_is_told_to_stand_alone(load, flags):
    with pytest.raises(ConfigError, match=r"--publish = 'none': can't be combined"):
        load("", *flags)
    assert planned(load("", "none")) == []
    assert planned(load("", "auto", "3000")) == ["3000", "auto"]
