# Read by login shells. No processes are started here: each costs a tenth of a second under emulation.
case ":$PATH:" in
    *:"$HOME/.local/bin":*) ;;
    *) PATH="$HOME/.local/bin:$PATH" ;;
esac
case ":$PATH:" in
    *:/usr/sbin:*) ;;
    *) PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin" ;;
esac
export PATH
export LANG="${LANG:-C.UTF-8}"
export NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt
# Claude Code refuses to skip permission questions as root, unless it is told that this is a sandbox.
if [ "$HOME" = /root ]; then
    export IS_SANDBOX=1
fi
