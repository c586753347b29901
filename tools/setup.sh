#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-3.0-or-later
# Gets a checkout ready. Each LEVEL adds to what a controller needs:
#   controller  .venv with ansible-core: enough to run the playbooks on real Macs; no root, Linux or macOS
#   sandbox     what the sandbox Macs need: Debian packages (root) and the files they download, in .cache
#   dev         .venv with the test and lint tools as well; with sandbox, also what only tests download
# Quick when nothing is missing; safe to kill and to run again at any point.
# PYTHON=/path/to/python3 chooses the interpreter of a new .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage='usage: tools/setup.sh controller | sandbox | dev ...'
log=.cache/setup.log
venv_stamp=.venv/complete
policy=/usr/sbin/policy-rc.d
policy_mark='lmfleet: in force only while tools/setup.sh installs packages'
sshd_is_new=.cache/sshd-is-new

main() {
  local level dev=no sandbox=no
  [ $# -gt 0 ] || die "$usage"
  for level in "$@"; do
    case $level in
      controller) ;;
      sandbox) sandbox=yes ;;
      dev) dev=yes ;;
      *) die "$usage" ;;
    esac
  done
  mkdir -p .cache
  wait_for_turn
  : >"$log"
  [ $sandbox = no ] || ensure_packages
  ensure_venv $dev
  [ $sandbox = no ] || ensure_sandbox_files
  [ $sandbox = no ] || [ $dev = no ] || ensure_test_files
}

die() {
  printf 'setup: %s\n' "$*" >&2
  exit 1
}

# Two runs at once would build the same .venv: the second waits for the first.
wait_for_turn() {
  command -v flock >/dev/null || return 0 # macOS has none
  exec 9>.cache/setup.lock
  flock --nonblock 9 && return 0
  echo 'setup: another setup of this checkout is running; waiting for it'
  flock 9
}

step() { # TITLE COMMAND...: one line with the seconds it took; the command's output goes to the log
  local title=$1 started=$SECONDS
  shift
  printf 'setup: %s ... ' "$title"
  if "$@" >>"$log" 2>&1 9>&-; then
    printf '%s s\n' "$((SECONDS - started))"
  else
    printf 'FAILED after %s s. The end of %s:\n' "$((SECONDS - started))" "$log"
    tail -n 25 "$log" | sed 's/^/    /'
    return 1
  fi
}

# --- Debian packages -------------------------------------------------------------------------------------------

ensure_packages() {
  local wanted missing
  read -ra wanted < <(sed 's/#.*//' tests/sandbox/packages.txt | xargs)
  if ! command -v dpkg-query >/dev/null; then
    echo "setup: not a Debian system, so nothing is installed here; the sandbox needs: ${wanted[*]}"
    return 0
  fi
  read -ra missing < <(missing_packages "${wanted[@]}")
  if [ ${#missing[@]} -gt 0 ]; then
    [ -z "$(missing_packages openssh-server)" ] || : >$sshd_is_new
    install_packages "${missing[@]}"
  fi
  if [ -e $sshd_is_new ]; then step 'keep the new ssh server switched off' switch_sshd_off; fi
}

missing_packages() { # NAME...: prints the ones that are not installed, in one line
  local name missing=()
  for name in "$@"; do
    dpkg-query --show --showformat '${Status}' "$name" 2>/dev/null | grep -q ' installed$' || missing+=("$name")
  done
  echo "${missing[*]}"
}

install_packages() { # NAME...
  [ "$(id -u)" = 0 ] ||
    die "root is needed once, to install these Debian packages: $*
setup: run this again as root, or let an administrator run: apt-get install --no-install-recommends $*"
  hold_back_services
  step "Debian packages: $*" apt_install "$@" || { release_services && exit 1; }
  release_services
}

apt_install() { # NAME...
  local apt=(env DEBIAN_FRONTEND=noninteractive apt-get --yes -o DPkg::Lock::Timeout=300)
  # An interrupted dpkg refuses everything until this has run; otherwise it does nothing.
  dpkg --configure -a
  # The lists of a machine may be missing or old; fetching them takes longer than most installs.
  "${apt[@]}" install --no-install-recommends "$@" ||
    { "${apt[@]}" update && "${apt[@]}" install --no-install-recommends "$@"; }
}

# Installing a package must not start a service on this machine, least of all open it to ssh. The policy ends with this
# process, so a killed run does not leave it in force; a policy that the machine already has stays as it is.
hold_back_services() {
  if [ -e $policy ] && ! grep -q "$policy_mark" $policy; then return 0; fi
  cat >$policy <<EOF
#!/bin/sh
# $policy_mark
kill -0 $$ 2>/dev/null && exit 101
exit 0
EOF
  chmod 755 $policy
}

release_services() {
  if grep -q "$policy_mark" $policy 2>/dev/null; then rm -f $policy; fi
}

# The sandbox Macs run sshd from Debian's package; the machine itself shall not, also after its next boot. Where the
# package was there before, nothing changes.
switch_sshd_off() {
  if command -v systemctl >/dev/null; then systemctl disable ssh.service ssh.socket; else update-rc.d ssh disable; fi
  rm $sshd_is_new
}

# --- the Python environment ------------------------------------------------------------------------------------

ensure_venv() { # yes|no: with the development tools?
  local stamp locks=(requirements/installer.txt requirements/controller.txt)
  # The development lock is the controller's plus tools, so a .venv with it serves both.
  if [ "$1" = yes ] || grep -q '^dev ' $venv_stamp 2>/dev/null; then locks+=(requirements/dev.txt); fi
  stamp=$(venv_inputs "${locks[@]}")
  if [ "$(cat $venv_stamp 2>/dev/null)" = "$stamp" ] && .venv/bin/python -c '' 2>/dev/null; then return 0; fi

  # Without its stamp a .venv may be half-made, and no installer can tell: start afresh.
  local controller_stamp
  controller_stamp=$(venv_inputs requirements/installer.txt requirements/controller.txt)
  if [ "$(cat $venv_stamp 2>/dev/null)" != "$controller_stamp" ] || ! .venv/bin/python -c '' 2>/dev/null; then
    make_venv
  fi
  rm -f $venv_stamp
  step "Python packages of ${locks[${#locks[@]} - 1]}" install_locked "${locks[${#locks[@]} - 1]}"
  printf '%s\n' "$stamp" >$venv_stamp
}

venv_inputs() { # LOCK...: changes whenever the .venv has to
  # The scripts of a .venv carry its path, so a moved checkout needs a new one.
  case "$*" in *requirements/dev.txt*) printf 'dev ' ;; *) printf 'controller ' ;; esac
  { pwd && cat "$@"; } | cksum
}

make_venv() {
  find_python
  rm -rf .venv
  step "Python environment in .venv ($("$python" --version))" make_venv_with_installer
}

make_venv_with_installer() {
  "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --require-hashes --requirement requirements/installer.txt
}

install_locked() { # LOCK
  # uv is several times faster, but does not read pip's own configuration: where an index or a proxy is set up
  # only there, pip does it.
  .venv/bin/uv pip install --quiet --compile-bytecode --python .venv/bin/python --require-hashes --requirement "$1" ||
    .venv/bin/python -m pip install --require-hashes --requirement "$1"
}

find_python() { # sets $python
  local candidate
  # The system's own first, where it is new enough: others are often compiled without optimisation, and a third slower.
  for candidate in ${PYTHON:-/usr/bin/python3 python3.14 python3.13 python3.12 python3.11 python3}; do
    supported "$candidate" || continue
    if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
      python=$candidate
      return 0
    fi
  done
  # Debian ships its Python without the part that makes environments.
  if supported /usr/bin/python3 && [ -z "${PYTHON:-}" ] && command -v apt-get >/dev/null; then
    install_packages python3-venv
    python=/usr/bin/python3
    return 0
  fi
  die "no Python 3.11, 3.12, 3.13 or 3.14 with the venv module found; install one, or name it: PYTHON=/path/to/python3"
}

supported() { # COMMAND
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null
}

# --- what the sandbox Macs download ----------------------------------------------------------------------------

ensure_sandbox_files() {
  step 'LM Studio stand-in, engine and model for the sandbox' .venv/bin/python tests/sandbox/lmstudio/fill_mirror.py --cache .cache
  step 'gateway packages for the sandbox' .venv/bin/python tests/sandbox/fill_wheels.py --cache .cache
}

ensure_test_files() {
  step 'Postgres for the tests of the gateway' .venv/bin/python tests/sandbox/fill_postgres.py --cache .cache
  [ -d .cache/nginx ] || step 'nginx for the tests of the gateway' fetch_nginx
}

# The program alone: the installed package would serve this machine.
fetch_nginx() {
  local new=.cache/nginx.new
  rm -rf $new
  mkdir $new
  (cd $new && apt-get download nginx) || { apt-get update && (cd $new && apt-get download nginx); }
  dpkg -x $new/nginx_*.deb $new
  mv $new .cache/nginx
}

main "$@"
