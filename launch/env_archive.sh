#!/bin/bash
# A virtual environment as one file on the shared file system, unpacked once on the local disk of each node. Imports
# then cause no load on the file servers, for any number of ranks.
#   env_archive.sh make FOLDER ARCHIVE         pack the virtual environment FOLDER: *.tar.zst, *.tar.gz or *.tar
#   env_archive.sh run ARCHIVE COMMAND ...     unpack ARCHIVE, if that is not done yet, and run COMMAND in it
# Unpacked environments stay in $TMPDIR/tolktrain-env-<uid> (in /tmp without TMPDIR) for the next job. Before a new one
# is unpacked, environments of other archives that no process uses are removed.
set -uo pipefail
given_mask=$(umask)
umask 077

fail() {
    echo "${0##*/}: ${HOSTNAME:-}: $*" >&2
    exit 2
}

make_archive() {
    local venv=$1 archive=$2 packer part
    [ -f "$venv/pyvenv.cfg" ] && [ -x "$venv/bin/python" ] || fail "$venv is not a virtual environment"
    case $archive in
        *.tar.zst) packer="zstd -q -T0" ;;
        *.tar.gz | *.tgz) packer="gzip" ;;
        *.tar) packer="cat" ;;
        *) fail "$archive: its name must end in .tar.zst, .tar.gz or .tar" ;;
    esac
    command -v "${packer%% *}" >/dev/null || fail "${packer%% *} is not installed; name the archive *.tar.gz"
    part=$(mktemp "$archive.XXXXXXXX") || fail "$archive cannot be written"
    trap 'rm -f "$part"' EXIT
    # Links are kept: bin/python points to the interpreter, which must exist on every node.
    # shellcheck disable=SC2086 # the packer's options are words
    tar -C "$venv" -cf - . | $packer >"$part" || fail "$venv could not be packed into $archive; see above"
    chmod "$(printf '%o' $((0666 & ~0$given_mask)))" "$part"
    mv -f "$part" "$archive" || fail "$archive cannot be written"
    trap - EXIT
}

own() { # Whether $1 is a folder (not a link) of this user that nobody else can enter.
    [ -d "$1" ] && [ ! -L "$1" ] && [ -O "$1" ] && [[ $(stat -c %a "$1") =~ ^[0-7]*00$ ]]
}

find_home() { # Sets `home`, this user's folder for environments on this node. Its name may be taken by another user.
    local base=${TMPDIR:-/tmp} plain found
    plain=$base/tolktrain-env-$(id -u)
    mkdir "$plain" 2>/dev/null
    for found in "$plain" "$plain".*; do
        own "$found" && home=$found && return
    done
    home=$(mktemp -d "$plain.XXXXXXXX") || fail "$base cannot be written to; set TMPDIR to a folder on the node's disk"
}

unpack() { # The archive $1 into the new folder $2.
    local reader
    case $1 in
        *.tar.zst) reader="zstd -q -dc" ;;
        *.tar.gz | *.tgz) reader="gzip -dc" ;;
        # Compressed archives end with a checksum. A plain one ends with zeros; tar does not notice if they are missing.
        *.tar)
            [ "$(tail -c 1024 "$1" | tr -d '\0' | wc -c)" -eq 0 ] || return
            reader="cat"
            ;;
        *) fail "TOLKTRAIN_ENV_ARCHIVE: $1: its name must end in .tar.zst, .tar.gz or .tar" ;;
    esac
    command -v "${reader%% *}" >/dev/null || fail "${reader%% *}, which unpacks $1, is not installed"
    # As root, tar would restore the original owners.
    $reader <"$1" | tar -C "$2" --no-same-owner -xf -
}

prepare() { # Unpacks the archive $1 unless it is there; opens its folder as 9, locked against removal, and sets `env`.
    local archive=$1 home name other said
    [ -f "$archive" ] && [ -r "$archive" ] || fail "TOLKTRAIN_ENV_ARCHIVE: $archive is not a file that can be read"
    find_home
    # The archive may be replaced by another one of the same name, so size and time count too.
    name=$(stat -L -c '%n %i %s %y' "$(readlink -f "$archive")" | sha256sum) && name=${name:0:16}
    env=$home/$name
    exec 8>>"$home/lock"
    flock -w "${TOLKTRAIN_ENV_WAIT:-1800}" 8 ||
        fail "another process has been unpacking into $home for ${TOLKTRAIN_ENV_WAIT:-1800} s; end it if it is stuck"
    if [ ! -d "$env" ]; then
        for other in "$home"/*/; do
            # This includes half-unpacked folders of killed processes.
            [ -d "$other" ] && flock -n -x "$other" true && rm -rf "$other"
        done
        new=$(mktemp -d "$home/new.XXXXXXXX") || fail "$home cannot be written to"
        trap 'rm -rf "$new"' EXIT
        unpack "$archive" "$new" ||
            fail "$archive could not be unpacked: it is damaged or not complete, or $home has no space for it" \
                "($(df -h --output=avail "$home" | tail -n 1 | tr -d ' ') free); nothing of it is used"
        said=$("$new/bin/python" -c 'import os, sys; assert os.path.samefile(sys.prefix, sys.argv[1])' "$new" 2>&1) ||
            fail "$archive holds no virtual environment whose bin/python runs here: $said"
        mv -T "$new" "$env" || fail "$env cannot be made"
        trap - EXIT
    fi
    exec 9<"$env" && flock -s 9 || fail "$env cannot be locked"
    exec 8>&-
}

case ${1:-} in
    make)
        [ $# -eq 3 ] || fail "usage: $0 make FOLDER ARCHIVE"
        make_archive "$2" "$3"
        ;;
    run)
        [ $# -ge 3 ] || fail "usage: $0 run ARCHIVE COMMAND ..."
        prepare "$2"
        umask "$given_mask"
        shift 2
        unset PYTHONHOME
        export VIRTUAL_ENV=$env PATH="$env/bin:$PATH"
        exec "$@"
        ;;
    *)
        sed -n '2,/^set/{/^#/p}' "$0" >&2
        exit 2
        ;;
esac
