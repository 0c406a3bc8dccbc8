#!/bin/sh
# Ends one PostgreSQL server when nobody holds it any more, and removes its directory. Part of throwaway-postgres; lib.rs
# has the whole. It starts nothing: a process that holds the server has started it.
#
# usage: watchdog.sh DIR        waits until nobody holds the server
#        watchdog.sh DIR end    ends the server now: the watchdog that it had was killed
#
# Descriptor 3 is the read end of the FIFO. This shell alone holds it: the builtin `read` needs no child, and each
# child closes it. So it is open exactly as long as this shell lives, and a process that opens the other end knows.
#
# Words on the FIFO, one a line:  j joined   l left   q left in a hurry   x left, and says that the server is dead
#                                 p the file `process` names another process
# End of file: nobody holds the server.

set -u
DIR=$1 NAME=${1##*/} CURRENT=${1%/*}/current
GRACE=30 # how long a server outlives its last holder, in tenths of a second

stopping= process= word=
grace=0 idle=0

say() { printf '%s watchdog: %s\n' "$(date '+%H:%M:%S' 3<&-)" "$1" 3<&-; }

nap() { sleep "$1" 3<&-; }

# Sets $word to the next word, or to nothing at the end of file. Blocks while there are holders who say nothing.
hear() {
    word=
    [ -n "$stopping" ] || read -r word <&3 || word=
    [ -z "$stopping" ] || finish 'told to stop'
}

# Remembers which process runs here. In memory, because somebody may delete the directory.
learn() { [ ! -f "$DIR/process" ] || read -r process <"$DIR/process"; }

names_me() {
    line=
    [ -f "$1" ] && read -r line <"$1"
    case $line in *"\"$NAME\""*) return 0 ;; *) return 1 ;; esac
}

# Puts the note back, unless a newer server has published its own: `ln`, unlike `mv`, does not overwrite.
put_back() {
    [ -f "$DIR/retired" ] || return 0
    ln "$DIR/retired" "$CURRENT" 2>/dev/null 3<&-
    rm -f "$DIR/retired" 3<&-
}

take_down() {
    names_me "$CURRENT" || return 0
    mv -f "$CURRENT" "$DIR/retired" 2>/dev/null 3<&- || return 0
    # Between the look and the move a newer server may have published its note. It is not ours to take.
    names_me "$DIR/retired" || put_back
}

# A process that joins writes `j` first and looks at the note afterwards. So once the note is gone and no word is left,
# nobody can have joined any more. Fails if somebody has.
retire() {
    take_down
    while :; do
        hear
        case $word in
            '') return 0 ;;
            j) grace=$GRACE idle=0; put_back; return 1 ;;
            p) learn ;;
        esac
    done
}

# Whether the process still runs. Its number may be another process's by now; a zombie has no command line.
runs() {
    [ -n "$process" ] || return 1
    if [ -d /proc/self ]; then
        line=$(tr '\0' ' ' <"/proc/$process/cmdline" 3<&-)
    else
        line=$(ps -ww -o args= -p "$process" 3<&-)
    fi 2>/dev/null
    case $line in *" $DIR/data"*) return 0 ;; *) return 1 ;; esac
}

# Each process of a server leads a group of its own, so they are found by their parent.
children() {
    exec 3<&-
    if [ -d /proc/self ]; then
        for stat in /proc/[0-9]*/stat; do
            read -r line <"$stat" || continue
            rest=${line##*) }
            parent=${rest#? }
            [ "${parent%% *}" != "$process" ] || echo "${line%% *}"
        done
    else
        ps -A -o pid= -o ppid= | while read -r pid parent; do
            [ "$parent" != "$process" ] || echo "$pid"
        done
    fi 2>/dev/null
}

# The children first, so that their parent has no time to notice.
signal() { kill -s "$1" $(children) "$process" 2>/dev/null; }

# Gives the process five seconds to end.
ends() {
    left=250
    while runs; do
        [ "$left" -gt 0 ] || return 1
        left=$((left - 1))
        nap 0.02
    done
}

# An immediate shutdown, also of a server that is frozen; the axe if that takes too long. initdb obeys the same signal.
stop_process() {
    runs || return 0
    signal CONT
    kill -s QUIT "$process" 2>/dev/null
    ends && return
    say "process $process does not obey SIGQUIT"
    signal KILL
    ends || say 'nor SIGKILL'
}

# A server that was killed leaves its System V segment behind, and names it in postmaster.pid. One that ended in an
# orderly way has removed both.
remove_shared_memory() {
    [ -f "$DIR/data/postmaster.pid" ] || return 0
    segment=$(sed -n '7s/.* //p' "$DIR/data/postmaster.pid" 3<&-)
    case $segment in '' | *[!0-9]*) ;; *) ipcrm -m "$segment" 2>/dev/null 3<&- ;; esac
}

# The FIFO goes last: as long as it is there and read, nobody takes this server for an orphan. The last processes
# of a server that was killed may still write for a moment.
remove_all() {
    case $NAME in srv-?*) ;; *) exit 2 ;; esac
    remove_shared_memory
    left=100
    until rm -rf "$DIR/data" 3<&- && rm -rf "$DIR" 3<&-; do
        [ "$left" -gt 0 ] || exit 1
        left=$((left - 1))
        nap 0.05
    done
}

finish() {
    stopping=
    say "$1: ending the server"
    take_down
    # A process says in `process` which one it is, and looks for `holders` before it starts. So it is either known here
    # or does not start.
    rm -f "$DIR/holders" 3<&-
    learn
    stop_process
    remove_all
    exit 0
}

# The grace period is for those who may join, so a server that no note names has none.
serve() {
    while :; do
        hear
        case $word in
            j) grace=$GRACE idle=0 ;;
            l) grace=$GRACE idle=0 ;;
            q) grace=0 ;;
            p) learn ;;
            x) runs || finish 'the server died' ;;
            '')
                if [ "$idle" -lt "$grace" ] && names_me "$CURRENT"; then
                    idle=$((idle + 1))
                    nap 0.1
                elif retire; then
                    finish 'nobody holds the server'
                fi
                ;;
        esac
    done
}

trap '' HUP INT QUIT   # Ctrl-C ends the tests, and their end is what ends this
trap '' PIPE           # nobody reads `ready` if the starter was killed
trap 'stopping=yes' TERM
cd / || exit 2
exec 3<&- 4<&- 5<&- 6<&- 7<&- 8<&- 9<&- # whatever was inherited: somebody may wait for its end
# Opening read-write does not block, and makes the read-only open not block either.
exec 4<>"$DIR/fifo" 3<"$DIR/fifo"
exec 4<&-

[ "${2-}" != end ] || finish 'its watchdog was killed'
echo ready
exec >&2
serve
