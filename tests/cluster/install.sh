#!/bin/bash
# The Debian (or Ubuntu) packages that the tests want: for the Slurm cluster, the clients, the load driver, PostgreSQL and the browser. Does nothing, in a few milliseconds, when all are there.
# As root where there is apt-get it installs what is missing, and starts no daemon; elsewhere it says what is missing and exits 1.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin" DEBIAN_FRONTEND=noninteractive

# A package, and a program that only this package brings.
needed=(
    slurmctld:slurmctld slurmd:slurmd slurm-client:sbatch munge:munged
    openssh-server:sshd openssh-client:ssh iproute2:ip util-linux:setpriv passwd:useradd hostname:hostname
    curl:curl prometheus:prometheus ca-certificates:update-ca-certificates shellcheck:shellcheck
    gcc:gcc nodejs:node caddy:caddy faketime:faketime chromium:chromium
)
missing=()
for entry in "${needed[@]}"; do
    command -v "${entry#*:}" >/dev/null || missing+=("${entry%%:*}")
done
# python3-venv has no program: it is there when the system's Python has ensurepip.
compgen -G '/usr/lib/python3*/ensurepip' >/dev/null && [ -x /usr/bin/python3 ] || missing+=(python3-venv)
# Its programs are not in PATH.
compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || missing+=(postgresql)

[ -e /usr/include/stdio.h ] || missing+=(libc6-dev)
# Some nodejs packages bring npm along, and conflict with Debian's own: only what is still missing beside node.
if command -v node >/dev/null && ! command -v npm >/dev/null; then missing+=(npm); fi

[ ${#missing[@]} -gt 0 ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "missing packages: ${missing[*]} (run this script as root on Debian or Ubuntu, or install them by hand)" >&2
    exit 1
fi

# While this file says 101, the packages' own scripts may start nothing.
policy=/usr/sbin/policy-rc.d
kept=""
restore() {
    rm -f "$policy"
    if [ -n "$kept" ]; then mv "$kept" "$policy"; fi
}
if [ -e "$policy" ]; then
    kept="$policy.before-sluice-$$"
    mv "$policy" "$kept"
fi
trap restore EXIT
printf '#!/bin/sh\nexit 101\n' >"$policy"
chmod 755 "$policy"

install() {
    timeout 600 apt-get install -y -q --no-install-recommends -o DPkg::Lock::Timeout=120 "${missing[@]}" >&2
}
# The first try fails where the package lists were never fetched or are too old.
if ! install; then
    timeout 300 apt-get update -q >&2
    install
fi
if ! command -v npm >/dev/null; then
    missing=(npm)
    install
fi
