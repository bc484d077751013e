"""What the start of a daemon costs."""

import subprocess
import sys

IMPORT = """
import sys
starts = {"subprocess.Popen", "os.posix_spawn"}
sys.addaudithook(lambda event, args: event in starts and print(event, args[0]))
import claude_vm.supervisor.daemon.main
"""


def test_a_daemon_runs_no_program_while_it_loads_its_libraries():
    done = subprocess.run([sys.executable, "-P", "-c", IMPORT], capture_output=True, text=True, check=True)
    assert done.stdout == ""


def test_libraries_can_be_found_afterwards():
    code = "import ctypes.util; before = ctypes.util.find_library; import claude_vm.supervisor.ssh.link\n"
    code += "assert ctypes.util.find_library is before"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
