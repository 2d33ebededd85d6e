#!/usr/bin/env bash
# Installs what torpor needs and this machine lacks, then makes .venv. Runs on a fresh Debian 12 or 13 or Ubuntu 24.04 or later; as root, with sudo, or,
# when nothing is missing, as anyone. Does nothing, quickly, when nothing changed.
#
#   TORPOR_PYTHON      the interpreter for .venv; otherwise the first of python3 and python3.11 to python3.14 that is 3.11 or later
#   TORPOR_NO_INSTALL  not empty: never install system packages, only say which are missing
#
#   --tests  also what only the tests need: PostgreSQL and Redis, which they start themselves, a static busybox, Node.js, Chromium,
#           and a resolver that knows names below localhost
set -euo pipefail
cd "$(dirname "$0")/.."

QEMU_OLDEST=8.2
FOR_TESTS=''
[ "${1:-}" != --tests ] || FOR_TESTS=yes
BACKPORTS_SOURCES=/etc/apt/sources.list.d/torpor-backports.sources
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

say() { printf 'torpor: %s\n' "$*"; }
fail() { printf 'torpor: %s\n' "$*" >&2; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }

as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

apt() {
  # Waits while another package manager works, and never asks.
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600 -o Dpkg::Use-Pty=0 "$@" >/dev/null
}

at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n1)" = "$2" ]; }

os_field() { (. /etc/os-release 2>/dev/null && eval "printf %s \"\${$1:-}\""); }

qemu_version() { qemu-system-x86_64 --version 2>/dev/null | sed -n '1s/.*version \([0-9.]*\).*/\1/p'; }

qemu_is_good() {
  local version
  version=$(qemu_version)
  [ -n "$version" ] && at_least "$version" "$QEMU_OLDEST"
}

find_python() {
  local candidate
  for candidate in ${TORPOR_PYTHON:+"$TORPOR_PYTHON"} python3 python3.14 python3.13 python3.12 python3.11; do
    if has "$candidate" && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  return 1
}

# Debian and Ubuntu ship the venv module without ensurepip unless python3-venv is there.
python_makes_venvs() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

missing_packages() {
  local python
  has qemu-img || echo qemu-utils
  has mmdebstrap || echo mmdebstrap
  has mke2fs && has debugfs && has e2fsck || echo e2fsprogs
  has nft || echo nftables
  has ip || echo iproute2
  has git || echo git
  has make || echo make
  [ -d /etc/ssl/certs ] && [ -s /etc/ssl/certs/ca-certificates.crt ] || echo ca-certificates
  [ -f /usr/share/keyrings/debian-archive-keyring.gpg ] || [ -f /usr/share/keyrings/debian-archive-keyring.pgp ] || echo debian-archive-keyring
  # mmdebstrap needs these to be root in a user namespace of its own.
  [ "$(id -u)" -eq 0 ] || has newuidmap || echo uidmap
  if [ -n "$FOR_TESTS" ]; then
    compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || has postgres || echo postgresql
    has redis-server || echo redis-server
    # One that needs no other file, to be alone in a jail.
    { [ -x /bin/busybox ] && ! ldd /bin/busybox >/dev/null 2>&1; } || echo busybox-static
    { has node && has npm; } || echo nodejs npm
    # Every name below localhost leads to this machine.
    getent hosts sandbox.sbx.localhost >/dev/null || echo libnss-myhostname
    has chromium || has chromium-browser || has google-chrome || echo chromium
  fi
  if python=$(find_python); then
    python_makes_venvs "$python" || [ -x .venv/bin/python ] || echo "$(basename "$(readlink -f "$python")")-venv"
  else
    echo python3 python3-venv
  fi
}

# The host's own archive, as apt was told: "URI" and "Signed-By" (empty where trusted keys are the system's) of the release's main suite.
host_archive() {
  local codename=$1 file
  for file in /etc/apt/sources.list.d/*.sources; do
    [ -f "$file" ] || continue
    awk -v suite="$codename" '
      function flush() { if (types ~ /(^| )deb( |$)/ && (" " suites " ") ~ (" " suite " ") && enabled !~ /^(no|false|0)$/ && uri != "") { print uri; print signed; found = 1; exit } }
      /^#/ { next }
      /^[ \t]*$/ { flush(); types = suites = uri = signed = enabled = ""; next }
      tolower($1) == "types:" { $1 = ""; types = $0 }
      tolower($1) == "suites:" { $1 = ""; suites = $0 }
      tolower($1) == "uris:" { uri = $2 }
      tolower($1) == "signed-by:" { signed = $2 }
      tolower($1) == "enabled:" { enabled = tolower($2) }
      END { if (!found) flush() }' "$file" | grep . && return
  done
  for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
    [ -f "$file" ] || continue
    awk -v suite="$codename" '
      $1 == "deb" {
        signed = ""
        if (match($0, /\[[^]]*\]/)) {
          options = substr($0, RSTART + 1, RLENGTH - 2)
          if (match(options, /signed-by=[^ ]*/)) signed = substr(options, RSTART + 10, RLENGTH - 10)
          sub(/\[[^]]*\]/, "")
        }
        if ($3 == suite) { print $2; print signed; exit }
      }' "$file" | grep . && return
  done
  return 1
}

candidate_version() { apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: *\([0-9]*:\)\{0,1\}\([0-9.]*\).*/\2/p'; }

backports_known() { apt-cache policy 2>/dev/null | grep -q "n=$1-backports"; }

add_backports() {
  local codename=$1 archive uri signed
  archive=$(host_archive "$codename") || fail "cannot find the archive of $codename among apt's sources: enable $codename-backports by hand, then run this again."
  uri=$(printf '%s\n' "$archive" | sed -n 1p)
  signed=$(printf '%s\n' "$archive" | sed -n 2p)
  say "enabling $codename-backports for QEMU ($BACKPORTS_SOURCES)"
  {
    printf '# Written by torpor for QEMU %s or later.\nTypes: deb\nURIs: %s\nSuites: %s-backports\nComponents: main\n' "$QEMU_OLDEST" "$uri" "$codename"
    [ -z "$signed" ] || printf 'Signed-By: %s\n' "$signed"
  } | as_root tee "$BACKPORTS_SOURCES" >/dev/null
  as_root chmod 0644 "$BACKPORTS_SOURCES"
}

install_qemu() {
  local codename
  codename=$(os_field VERSION_CODENAME)
  if at_least "$(candidate_version qemu-system-x86)" "$QEMU_OLDEST"; then
    apt install -y --no-install-recommends qemu-system-x86 qemu-utils
  elif [ "$(os_field ID)" = debian ]; then
    if ! backports_known "$codename"; then
      add_backports "$codename"
      apt update
    fi
    apt install -y --no-install-recommends -t "$codename-backports" qemu-system-x86 qemu-utils
  else
    fail "this release has no QEMU $QEMU_OLDEST: use Debian 12 or later or Ubuntu 24.04 or later, or install QEMU yourself."
  fi
  qemu_is_good || fail "QEMU is $(qemu_version) even after installing; torpor needs $QEMU_OLDEST or later. Is another one first in PATH?"
}

install_system() {
  local packages need_qemu=''
  packages=$(missing_packages | tr '\n' ' ')
  qemu_is_good || need_qemu=yes
  [ -n "${packages// /}" ] || [ -n "$need_qemu" ] || return 0
  local wanted="${packages}${need_qemu:+qemu-system-x86 (>= $QEMU_OLDEST)}"
  has apt-get || fail "missing: $wanted. Install them with this system's package manager."
  [ -z "${TORPOR_NO_INSTALL:-}" ] || fail "missing: $wanted"
  if [ "$(id -u)" -ne 0 ]; then
    has sudo && { sudo -n true 2>/dev/null || [ -t 0 ]; } || fail "missing: $wanted. Run as root: apt-get install ${packages}${need_qemu:+qemu-system-x86}"
  fi
  say "installing $wanted"
  # Fresh machines and containers have no package lists; old lists name files that are gone.
  if [ -n "$need_qemu" ] || ! apt_knows $packages; then apt update; fi
  # shellcheck disable=SC2086  # a list of package names
  if [ -n "${packages// /}" ] && ! apt install -y --no-install-recommends $packages; then
    apt update
    # shellcheck disable=SC2086
    apt install -y --no-install-recommends $packages
  fi
  [ -z "$need_qemu" ] || install_qemu
  packages=$(missing_packages | tr '\n' ' ')
  [ -z "${packages// /}" ] || fail "still missing after installing: $packages"
}

apt_knows() {
  local package
  for package in "$@"; do [ -n "$(candidate_version "$package")" ] || return 1; done
}

make_venv() {
  local python stamp digest
  python=$(find_python) || fail "no Python 3.11 or later: install one and name it in TORPOR_PYTHON."
  stamp=.venv/.torpor-stamp
  digest=$(cat requirements.lock pyproject.toml | sha256sum | cut -d' ' -f1)
  if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$digest" ] && .venv/bin/python -c 'import torpor' 2>/dev/null; then return; fi
  # A Python that went away leaves a .venv that cannot start; other tools make one without pip.
  if [ -d .venv ] && ! .venv/bin/python -c '' 2>/dev/null; then rm -rf .venv; fi
  if [ -d .venv ] && ! .venv/bin/python -c 'import pip' 2>/dev/null; then .venv/bin/python -m ensurepip --upgrade >/dev/null; fi
  [ -x .venv/bin/python ] || { say "making .venv with $python"; "$python" -m venv .venv; }
  say "installing Python packages (checked against requirements.lock)"
  # pip warns of what is wanted here: root's own .venv, or a cache that belongs to somebody else. Errors still show.
  local install=(.venv/bin/python -m pip install -qq --disable-pip-version-check --no-input --root-user-action=ignore)
  "${install[@]}" --require-hashes -r requirements.lock
  # The build backend is in the lock as well: with isolation pip would fetch one anew, unchecked.
  "${install[@]}" --no-build-isolation --no-index --no-deps --editable .
  printf '%s\n' "$digest" >"$stamp"
}

[ "$(uname -s)" = Linux ] && [ "$(uname -m)" = x86_64 ] || fail "torpor runs on x86-64 Linux; this is $(uname -sm)."
install_system
make_venv
