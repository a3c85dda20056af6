#!/bin/sh
# Runs inside the virtual machine at each of its boots: rung as a service of systemd, on cgroup v2, over a real reboot.
# What it says goes to the machine's console; the last line tells the outcome.
set -u
stage=/var/lib/story-stage
app=http://guestbook.localhost

say() { echo "story: $*"; }
fail() {
    say "FAILED: $*"
    systemctl status rung --no-pager -l | head -20
    journalctl -u rung --no-pager | tail -40
    say "ended: failed"
    systemctl poweroff
    exit 1
}
fetch() { curl -fsS --max-time 10 --resolve guestbook.localhost:80:127.0.0.1 "$app$1"; }

# Waits until a command succeeds; the machine is emulated, so it is patient.
until_true() {
    what=$1; shift; left=240
    until "$@" >/dev/null 2>&1; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || fail "$what did not come to be: $("$@" 2>&1 | tail -5)"
        sleep 1
    done
    say "$what"
}

pid_of_rung() { systemctl show -p MainPID --value rung; }
pids_of_instances() { rung ps --app guestbook --json | grep -o '"pid": *[0-9]*' | grep -o '[0-9]*$' | sort -n | tr '\n' ' '; }
rung_is_another() { now=$(pid_of_rung); [ "$now" != 0 ] && [ "$now" != "$1" ] && rung status --json; }
limit_of() { cat "/sys/fs/cgroup$(sed -n 's/^0:://p' "/proc/$1/cgroup")/$2"; }

first_boot() {
    [ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ] || fail "the machine has no cgroup v2"
    say "cgroup v2 with: $(cat /sys/fs/cgroup/cgroup.controllers)"
    rung service install --http 127.0.0.1:80 || fail "the service was not installed"
    until_true "the server answers" rung status --json
    rung deploy /opt/guestbook || fail "the guestbook was not deployed"
    until_true "the guestbook answers" fetch /up
    fetch / >/dev/null || fail "no page"
    curl -fsS --max-time 20 --resolve guestbook.localhost:80:127.0.0.1 -d 'name=Ada&text=before+the+reboot' "$app/" >/dev/null \
        || fail "the entry was not taken"
    say "doctor:"; rung doctor

    before=$(pids_of_instances)
    set -- $before
    say "instances: $before, memory.max $(limit_of "$1" memory.max)"
    found=none
    for pid in $before; do
        [ "$(limit_of "$pid" memory.max)" = 256000000 ] && found=some
    done
    [ $found = some ] || fail "no instance has its memory limit"

    old=$(pid_of_rung)
    kill -9 "$old"
    until_true "systemd started rung again after kill -9" rung_is_another "$old"
    until_true "the guestbook answers after kill -9" fetch /up
    [ "$(pids_of_instances)" = "$before" ] || fail "instances were restarted by a crash of rung: $before, then $(pids_of_instances)"
    say "no instance was restarted"

    rung deploy /opt/glutton && fail "an app beyond its memory limit was deployed"
    say "an instance beyond its limit was ended: $(rung events --app glutton 2>&1 | grep -i -m1 memory)"
    rung destroy glutton -y >/dev/null 2>&1

    echo rebooted >$stage
    sync
    say "reboots"
    systemctl reboot
}

second_boot() {
    until_true "the guestbook answers after a reboot" fetch /up
    fetch / | grep -q 'before the reboot' || fail "the entry is lost"
    [ "$(rung ps --app guestbook --json | grep -c '"healthy"')" -ge 3 ] \
        || until_true "all instances are healthy" sh -c '[ "$(rung ps --app guestbook --json | grep -c "\"healthy\"")" -ge 3 ]'
    systemctl stop rung || fail "rung did not stop"
    left=$(pgrep -f 'web.py|worker.py' | tr '\n' ' ')
    [ -z "$left" ] || fail "stopping left processes: $left"
    say "ended: passed"
    systemctl poweroff
}

case "$(cat $stage 2>/dev/null)" in
    rebooted) second_boot ;;
    *) first_boot ;;
esac
