#!/bin/sh
# Ends one test's own server when the test lets go of it or dies, and removes its directory. Part of the test
# kit; see server/own.rs.
#
# usage: guard.sh DIR
#
# The test's process holds the FIFO in DIR open for writing; its end of file is the sign. Descriptor 3 is the
# read end: as long as it is open, nobody takes the server for an orphan.

set -u
DIR=$1
postmaster=

nap() { sleep 0.02 3<&-; }

# Whether the postmaster lives. A process id may have been given to somebody else; a zombie has no command line.
runs() {
    [ -n "$postmaster" ] || return 1
    if [ -d /proc/self ]; then
        line=$(tr '\0' ' ' <"/proc/$postmaster/cmdline" 3<&-)
    else
        line=$(ps -ww -o args= -p "$postmaster" 3<&-)
    fi 2>/dev/null
    case $line in *"/postgres -D $DIR/data"*) return 0 ;; *) return 1 ;; esac
}

# Each process of a server leads a group of its own, so they are found by their parent.
children() {
    if [ -d /proc/self ]; then
        for stat in /proc/[0-9]*/stat; do
            read -r line <"$stat" || continue
            rest=${line##*) }
            parent=${rest#? }
            [ "${parent%% *}" != "$postmaster" ] || echo "${line%% *}"
        done
    else
        ps -A -o pid= -o ppid= | while read -r pid parent; do
            [ "$parent" != "$postmaster" ] || echo "$pid"
        done
    fi 2>/dev/null
}

signal() { kill -s "$1" $(children) "$postmaster" 2>/dev/null; }

# An immediate shutdown of a server that may be frozen; the axe if that takes too long.
stop_server() {
    signal CONT
    kill -s QUIT "$postmaster" 2>/dev/null
    left=250
    while runs && [ "$left" -gt 0 ]; do
        left=$((left - 1))
        nap
    done
    ! runs || signal KILL
    while runs; do nap; done
}

# As in watchdog.sh: only a server that was killed has left it.
remove_shared_memory() {
    [ -f "$DIR/data/postmaster.pid" ] || return 0
    segment=$(sed -n '7s/.* //p' "$DIR/data/postmaster.pid" 3<&-)
    case $segment in '' | *[!0-9]*) ;; *) ipcrm -m "$segment" 2>/dev/null 3<&- ;; esac
}

trap '' HUP INT QUIT TERM
cd / || exit 2
# Opening read-write does not block, and makes the read-only open not block either.
exec 4<>"$DIR/fifo" 3<"$DIR/fifo"
exec 4<&-
echo ready
exec >/dev/null

while read -r word <&3; do :; done
[ ! -f "$DIR/data/postmaster.pid" ] || read -r postmaster <"$DIR/data/postmaster.pid"
! runs || stop_server
remove_shared_memory
# The FIFO goes last.
rm -rf "$DIR/data" 3<&-
rm -rf "$DIR" 3<&- || { nap; rm -rf "$DIR" 3<&-; }
