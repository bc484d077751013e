"""The machine of one simulated VM: a process that goes on when the VM's supervisor dies, as QEMU does.

It makes the instance for the daemon of a data folder and runs a session in it, says on stdout how to go on
with both, loses its connection, and waits for the end of its input.
"""

import json
import sys
from pathlib import Path

import anyio
import msgspec

from claude_vm.drivers.api import InstanceSpec, Owner
from claude_vm.drivers.process import boot_id
from claude_vm.drivers.sim.driver import open_driver
from claude_vm.supervisor.ssh.launch import LaunchMode, launch_file
from claude_vm.supervisor.ssh.link import connect
from claude_vm.supervisor.ssh.process import Pty
from claude_vm.supervisor.ssh.shells import ShellKind, prime
from claude_vm.supervisor.wire import paths


async def main(home, instance_id, session_id):
    owner = Owner(home=home, supervisor_id="daemon", runtime=Path(paths.runtime_directory(str(home))))
    async with open_driver(owner) as driver:
        (template,) = await driver.templates()
        sizes = {"cpus": template.cpus, "memory_mib": template.memory_mib, "disk_gib": template.disk_gib}
        await driver.clone(InstanceSpec(instance_id, template.name, template.generation, **sizes))
        access = await driver.start(instance_id, lambda *_: None)
        words = ("sh", "-c", "echo up; exec sleep 600")
        await driver.put_files(instance_id, [launch_file(session_id, mode=LaunchMode.EXEC, argv=words)])
        link = await connect(access, timeout_s=60)
        shells = await prime(link, [ShellKind.PTY], term="dumb")
        process = await shells.start(session_id, pty=Pty("dumb", 24, 80))
        said = b""
        while b"up" not in said:
            said += await process.read_stdout(100)
        told = {
            "boot_id": boot_id(),
            "access": msgspec.to_builtins(access, enc_hook=str),
            "key": {"driver": "sim", "template": template.name, "generation": template.generation, **sizes},
        }
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
        link.cut()
        await anyio.to_thread.run_sync(sys.stdin.read)


if __name__ == "__main__":
    anyio.run(main, Path(sys.argv[1]), *sys.argv[2:])
