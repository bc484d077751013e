"""A connection by asyncssh alone, with the choices of our links: what is beneath each of our sessions."""

import asyncssh

from claude_vm.supervisor.ssh.link import CIPHERS, KEY_EXCHANGES


async def open_connection(
    address: str, port: int, *, user: str, host_key: asyncssh.SSHKey, client_key: asyncssh.SSHKey | str
) -> asyncssh.SSHClientConnection:
    """Connect with nothing of this host's SSH configuration. `client_key` is a key or a file's path.

    Raises:
        asyncssh.Error: It is not the host, or takes not the key.
        OSError: Nobody listens.
    """
    return await asyncssh.connect(
        address,
        port,
        config=[],
        agent_path=None,
        known_hosts=([host_key], [], []),
        client_keys=[client_key],
        username=user,
        gss_host=None,
        kex_algs=KEY_EXCHANGES,
        encryption_algs=CIPHERS,
        compression_algs=["none"],
        x509_trusted_certs=None,
    )
