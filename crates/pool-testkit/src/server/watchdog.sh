#!/bin/sh
# Starts one PostgreSQL server and owns its end. Part of the test kit; see server/mod.rs for the whole.
#
# usage: watchdog.sh DIR CURRENT BIN GRACE INITDB_OPTION...
#   DIR      the server's directory (holds fifo, settings.conf and pwfile; gets data and log)
#   CURRENT  the note that names the server to join
#   BIN      where initdb and postgres are
#   GRACE    how long to outlive the last holder, in tenths of a second
#
# Descriptor 3 is the read end of the FIFO. This shell alone holds it: the builtin `read` needs no child, and each
# child closes it. So it is open exactly as long as this shell lives, and whoever opens the other end knows.
#
# Words on the FIFO, one a line. From holders:  j joined   l left   q left in a hurry
#                               From below:    i<pid> initdb runs   p<pid> the server runs   x either ended
# End of file: nobody holds the server.

set -u
DIR=$1 CURRENT=$2 BIN=$3 GRACE=$4
shift 4
NAME=${DIR##*/}

stopping= abandoned= joined= initdb= postmaster= keeper= word=
grace=0 idle=0 # no grace before somebody has joined: nobody else knows this server yet

say() { printf '%s watchdog: %s\n' "$(date '+%H:%M:%S' 3<&-)" "$1" 3<&-; }

nap() { sleep 0.1 3<&-; }

# Sets $word to the next word, or to nothing at the end of file. Blocks while there are holders who say nothing.
hear() {
    word=
    read -r word <&3 || word=
    [ -z "$stopping" ] || [ -z "$postmaster" ] || finish 'told to stop'
}

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

# Whoever joins writes `j` first and looks at the note afterwards. So once the note is gone and no word is left,
# nobody can have joined any more. Fails if somebody has.
retire() {
    take_down
    while :; do
        hear
        case $word in
            '') return 0 ;;
            j) grace=$GRACE idle=0; put_back; return 1 ;;
            x) died ;;
        esac
    done
}

running() { [ -n "$postmaster" ] && kill -0 "$postmaster" 2>/dev/null; }

# Gives the server five seconds to obey a signal. Says it again and again, because a server that has only just been
# started ignores SIGINT, as all background children of a shell do, until it sets up its own handling.
obeys() {
    left=50
    while running; do
        [ "$left" -gt 0 ] || return 1
        left=$((left - 1))
        kill -s "$1" "$postmaster" 2>/dev/null
        nap
    done
}

# Fast shutdown; immediate shutdown if that takes too long; the axe if that does.
stop_server() {
    for signal in INT QUIT KILL; do
        obeys "$signal" && break
        say "the server does not obey SIG$signal"
    done
    # The keeper has a last word to say, which must not be written into a vanishing directory.
    running || wait "$keeper"
}

# A server that was killed leaves its System V segment behind, and names it in postmaster.pid. One that ended in an
# orderly way has removed both.
remove_shared_memory() {
    [ -f "$DIR/data/postmaster.pid" ] || return 0
    segment=$(sed -n '7s/.* //p' "$DIR/data/postmaster.pid" 3<&-)
    case $segment in '' | *[!0-9]*) ;; *) ipcrm -m "$segment" 3<&- ;; esac
}

# The FIFO goes last: as long as it is there and read, nobody takes this server for an orphan.
remove_all() {
    case $NAME in srv-?*) ;; *) exit 2 ;; esac
    remove_shared_memory
    rm -rf "$DIR/data" 3<&-
    rm -rf "$DIR" 3<&- || { nap; rm -rf "$DIR" 3<&-; }
}

finish() {
    stopping=
    say "$1: stopping the server"
    take_down
    stop_server
    remove_all
    exit 0
}

# A server that dies before anybody joined is the starter's to examine: its log must survive.
died() {
    say 'the server died'
    [ -n "$joined$abandoned" ] || exit 1
    take_down
    remove_all
    exit 1
}

# Opening read-write, because opening for writing alone would block for ever if the watchdog was killed.
tell() { echo "$1" 1<>"$DIR/fifo"; }

# Makes the data directory, runs the server, and tells of it. In a child, because the watchdog listens meanwhile.
keep_server() {
    trap '' TERM
    make_data "$@" && run_server
    tell x
}

make_data() {
    "$BIN/initdb" -D "$DIR/data" --pwfile="$DIR/pwfile" "$@" >>"$DIR/log" 2>&1 </dev/null &
    tell "i$!"
    wait "$!" && rm -f "$DIR/pwfile" && cat "$DIR/settings.conf" >>"$DIR/data/postgresql.conf"
}

run_server() {
    "$BIN/postgres" -D "$DIR/data" >>"$DIR/log" 2>&1 </dev/null &
    tell "p$!"
    wait "$!"
}

# The starter is dead, or we are told to stop. Nobody waits for the server any more; its next word ends it.
abandon() {
    [ -p "$DIR/fifo" ] || finish 'somebody deleted the directory' # so no word can come any more
    [ -n "$abandoned" ] || [ -z "$initdb" ] || { abandoned=yes; kill -s INT "$initdb"; }
    nap
}

start_server() {
    # Not `keep_server 3<&-`: for a function the shell would keep a copy of 3, to restore it afterwards.
    (exec 3<&-; keep_server "$@") &
    keeper=$!
    while [ -z "$postmaster" ]; do
        hear
        case $word in
            i*) initdb=${word#i} ;;
            p*) postmaster=${word#p} ;;
            j) joined=yes ;;
            x) died ;;
            '') abandon ;;
        esac
    done
}

serve() {
    while :; do
        hear
        case $word in
            j) joined=yes grace=$GRACE idle=0 ;;
            l) grace=$GRACE idle=0 ;;
            q) grace=0 ;;
            x) died ;;
            '')
                if [ "$idle" -lt "$grace" ]; then
                    idle=$((idle + 1))
                    nap
                elif retire; then
                    finish 'nobody holds the server'
                fi
                ;;
        esac
    done
}

trap '' HUP INT QUIT   # Ctrl-C ends the tests, and their end is what ends this
trap 'stopping=yes' TERM
cd / || exit 2
exec 3<&- 4<&- 5<&- 6<&- 7<&- 8<&- 9<&- # whatever was inherited: somebody may wait for its end
# Opening read-write does not block, and makes the read-only open not block either, even if the starter is dead.
exec 4<>"$DIR/fifo" 3<"$DIR/fifo"
exec 4<&-

start_server "$@"
serve
