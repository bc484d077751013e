"""What the start of a daemon costs."""

import subprocess
import sys

IMPORT = """
import sys
starts = {"subprocess.Popen", "os.posix_spawn"}
sys.addaudithook(lambda event, args: event in starts and print(event, args[0]))
import claude_vm.supervisor.daemon.process.main
"""


def test_a_daemon_runs_no_program_while_it_loads_its_libraries():
    done = subprocess.run([sys.executable, "-P", "-c", IMPORT], capture_output=True, text=True, check=True)
    assert done.stdout == ""


def test_libraries_can_be_found_afterwards():
    code = "import ctypes.util; before = ctypes.util.find_library; import claude_vm.supervisor.ssh.link\n"
    code += "assert ctypes.util.find_library is before"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_garbage_is_collected_once_the_libraries_are_loaded():
    code = """
import gc, runpy, sys, types
main = types.ModuleType("claude_vm.supervisor.daemon.process.main")
main.main = lambda foreground: print(gc.isenabled(), gc.get_freeze_count() > 0)
sys.modules[main.__name__] = main
runpy.run_module("claude_vm.supervisor.daemon", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True True\n"
