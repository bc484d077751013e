"""Everything that a run needs, made when it is first asked for and removed at the end."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

import anyio

from claude_vm.bench.byhand import ByHand
from claude_vm.bench.errors import BenchError, UnavailableError
from claude_vm.bench.guests import Guests, open_guests
from claude_vm.bench.limahand import LimaByHand
from claude_vm.bench.limastock import make_ordinary
from claude_vm.bench.modes import ByHandMode, CommandMode, Mode, SessionMode, SshMode
from claude_vm.bench.site import Site, open_folder
from claude_vm.bench.ssh import Login
from claude_vm.bench.stock import make_stock
from claude_vm.context.config.layers import load_settings
from claude_vm.context.config.setting import Value
from claude_vm.context.project import find_project
from claude_vm.drivers import registry
from claude_vm.drivers.api import Capabilities, Owner, TemplateRecord
from claude_vm.drivers.errors import DriverError
from claude_vm.drivers.lima.hypervisor import Lima
from claude_vm.drivers.programs import own
from claude_vm.drivers.qemu.hypervisor import Qemu
from claude_vm.drivers.sim.driver import SimDriver
from claude_vm.drivers.vm.driver import BOOT_ONLY
from claude_vm.supervisor.daemon.templates.current import current_template
from claude_vm.supervisor.wire import paths

P = ParamSpec("P")
T = TypeVar("T")

POOL = 4
"""How many warm VMs the home of the mode ``warm`` keeps."""

_LIMITS = 'max_instances = 64\nmemory_budget = "1000GB"\nidle_timeout = "1h"\n'
_BOOT_ONLY = {BOOT_ONLY[0]: BOOT_ONLY[1]}


class Facts(NamedTuple):
    """What a run is about: the project, its template, the driver. `home` is the user's data folder."""

    project: Path
    home: Path
    record: TemplateRecord
    capabilities: Capabilities


def find_facts(cwd: Path, environ: Mapping[str, str], flags: Mapping[str, Value]) -> Facts:
    """Find the project of a directory, its template and its driver.

    With the driver ``auto`` it is the first one of those that can be used which has the template.

    Raises:
        BenchError: It has no template, or no driver can be used.
    """
    settings = load_settings(flags=flags, environ=environ, home=Path.home())
    project = find_project(cwd)
    home = Path(paths.home())

    async def find() -> Facts | None:
        owner = Owner(home=home, supervisor_id="bench", runtime=Path(paths.runtime_directory(str(home))))
        named = settings.driver.name
        for each in await registry.usable(own()) if named == registry.AUTO else [named]:
            async with registry.open_driver(each, owner) as driver:
                if (record := await current_template(driver, project)) is not None:
                    return Facts(project.root, home, record, await driver.capabilities())
        return None

    try:
        facts = anyio.run(find)
    except DriverError as error:
        raise BenchError(str(error), error.hint) from error
    if facts is None:
        raise BenchError(f"{project.template_root} has no template", "build it with: claude-vm setup")
    return facts


def _once(make: "Callable[Concatenate[Lab, P], T]") -> "Callable[Concatenate[Lab, P], T]":
    """Let a method make what it returns only once for each name. A failure is remembered, too."""

    def found(lab: "Lab", /, *names: P.args, **how: P.kwargs) -> T:
        key = (make.__name__, *names)
        if key not in lab.made:
            try:
                lab.made[key] = make(lab, *names, **how)
            except BenchError as error:
                lab.made[key] = error
        known = lab.made[key]
        if isinstance(known, BenchError):
            raise known
        return known  # type: ignore[return-value]

    return found


class Lab:
    """The homes, guests and connections of one run. Made by `open_lab`; not for several threads.

    `facts` is None where there is no project with a template: then only simulations can be measured.
    `made` is what its methods have made.
    """

    def __init__(
        self,
        folder: Path,
        facts: Facts | None,
        why: str,
        stack: contextlib.ExitStack,
        tell: Callable[[str], None],
    ) -> None:
        self.folder = folder
        self.tell = tell
        self._facts = facts
        self._why = why
        self._stack = stack
        self.made: dict[tuple[object, ...], object] = {}

    @property
    def facts(self) -> Facts:
        """The project and its template.

        Raises:
            UnavailableError: There is none.
        """
        if self._facts is None:
            raise UnavailableError(self._why)
        return self._facts

    @_once
    def site(self, name: str, *, pool: str = "size = 0\n", env: Mapping[str, str] | None = None) -> Site:
        """Return a home with the project's template and these settings of its pool."""
        self.tell(f"a home for: {name}")
        site = self._open(name, self.facts.project, pool, env=env)
        site.share_template(self.facts.home, self.facts.record)
        return site

    @_once
    def defaults(self) -> Site:
        """Return a home without settings: those of the pool are the defaults."""
        site = self._open("defaults", self.facts.project, limits="")
        site.share_cache(self.facts.home)
        return site

    @_once
    def project(self, name: str) -> Site:
        """Return a home with an empty project of its own, one warm VM, and the project's template for it."""
        site = self._open(name, None, "size = 1\n")
        site.share_template(self.facts.home, self.facts.record, lent=True)
        return site

    @_once
    def simulated(self, name: str, *, pool: str = "size = 0\n", limits: str = _LIMITS) -> Site:
        """Return a home whose guests are simulated, with a project and a template of its own."""
        site = self._open(name, None, pool, limits, {"CLAUDE_VM_DRIVER": SimDriver.name})
        site.do("setup", "--no-agent")
        return site

    def _open(
        self,
        name: str,
        project: Path | None,
        pool: str = "",
        limits: str = _LIMITS,
        env: Mapping[str, str] | None = None,
    ) -> Site:
        """Open a site until the end of the run: in a project, or an empty one; with the template's driver."""
        root = self.folder / name
        if project is None:
            project = root / "project"
            project.mkdir(mode=0o700, parents=True)
        env = env or {}
        if "CLAUDE_VM_DRIVER" not in env:
            env = {"CLAUDE_VM_DRIVER": self.facts.record.driver, **env}
        site = Site(root, project, settings=f"[pool]\n{pool}{limits}", env=env)
        self._stack.callback(site.close)
        return site

    @_once
    def guests(self) -> Guests:
        """Return a maker of guests of the project's template."""
        record = self.facts.record
        return self._stack.enter_context(open_guests(self.site("twin"), record.driver, record.name))

    @_once
    def login(self) -> Login:
        """Return an open OpenSSH connection to a guest that lives as long as the run."""
        self.tell("a guest with an open ssh connection")
        login, _ = self._stack.enter_context(self.guests().logged_in_at())
        return login

    @_once
    def stock(self) -> Site:
        """Return a home whose template has systemd as Debian ships it."""
        if self.facts.record.driver != Qemu.name:
            raise UnavailableError("only QEMU's templates have a variant with stock systemd")
        guests = self.guests()
        self.tell("a variant of the template with stock systemd (two boots)")
        site = self._open("stock", self.facts.project, "size = 0\n", env=_BOOT_ONLY)
        make_stock(guests, site)
        return site

    @_once
    def mode(self, name: str) -> Mode:
        """Return a mode or a baseline by its name.

        Raises:
            UnavailableError: It can't be measured here.
            BenchError: There is no such mode.
        """
        makers: dict[str, Callable[[], Mode]] = {
            "warm": lambda: SessionMode(self.site("warm", pool=f"size = {POOL}\n"), warm=POOL),
            "clone": lambda: SessionMode(self.site("clone")),
            "restore": lambda: SessionMode(self.site("restore", pool=f"size = 0\npaused = {POOL}\n")),
            "cold": lambda: SessionMode(self.site("cold", env=_BOOT_ONLY)),
            "stock": lambda: SessionMode(self.stock()),
            "ssh": lambda: SshMode(self.login()),
            "by-hand": lambda: ByHandMode(ByHand(self.guests())),
            "lima-by-hand": self._lima,
            "simulated": lambda: SessionMode(self.simulated("sim-commands")),
            "python": lambda: CommandMode.interpreter(self.simulated("sim-commands")),
            "version": lambda: CommandMode.ours(self.simulated("sim-commands"), "--version"),
            "ps": lambda: CommandMode.ours(self.simulated("sim-commands"), "ps"),
        }
        if name not in makers:
            raise BenchError(f"there is no mode '{name}'", f"the modes are: {', '.join(makers)}")
        return makers[name]()

    def warm_mode(self) -> tuple[str, SessionMode, str]:
        """Return the mode ``warm``, or RAM clones where there is no pool: its name, itself, and a note."""
        try:
            name, note = "warm", ""
            self.mode(name).prepare(1)
        except UnavailableError as error:
            name, note = "clone", f"measured with RAM clones: {error}"
        mode = self.mode(name)
        assert isinstance(mode, SessionMode)  # noqa: S101 - both are
        return name, mode, note

    def _lima(self) -> Mode:
        if self.facts.record.driver != Lima.name:
            raise UnavailableError("the driver is not lima", "measure with: claude-vm bench --driver lima")
        guests = self.guests()
        self.tell("an ordinary instance of Lima with cloud-init (an image, two boots)")
        site = self._open("lh", self.facts.project, env=_BOOT_ONLY)
        site.share_cache(self.facts.home)
        return ByHandMode(LimaByHand(make_ordinary(guests, site)))


@contextlib.contextmanager
def open_lab(
    cwd: Path,
    environ: Mapping[str, str],
    tell: Callable[[str], None],
    *,
    flags: Mapping[str, Value] | None = None,
) -> Iterator[Lab]:
    """Open a lab for the project of a directory; all that it made is gone at the end."""
    facts, why = None, ""
    try:
        facts = find_facts(cwd, environ, flags or {})
    except BenchError as error:
        why = f"{error} ({error.hint})" if error.hint else str(error)
    with open_folder(Path(paths.home())) as folder, contextlib.ExitStack() as stack:
        yield Lab(folder, facts, why, stack, tell)
