#!/usr/bin/env bash
# A throw-away Slurm cluster on this machine, for the tests of launch/pretrain.sbatch. It is the real Slurm; only the
# machines are pretended.
#
#   minislurm.sh check              print what stands in the way and return 3, if anything does
#   minislurm.sh start [N]          start a cluster of N nodes, 2 if not given
#   minislurm.sh exec CMD ARGS...   run CMD as on its login node: sbatch, srun, scontrol, ...
#   minislurm.sh on NODE CMD...     run CMD on node1, node2, ...
#   minislurm.sh crash NODE         its power fails: all that runs there ends at once
#   minislurm.sh boot NODE          start it again; what was running there is lost for Slurm from then on
#   minislurm.sh stop               end it and everything that runs on it
#
# MINISLURM_DIR             its folder, empty or of an earlier cluster (/tmp/minislurm)
# MINISLURM_OWNER           a process id: the cluster ends within a second of this process, however that ends
# MINISLURM_SLURMD_TIMEOUT  seconds of silence after which a node is lost (120)
# MINISLURM_KILL_WAIT       seconds from TERM to KILL at a time limit and the like (30)
# MINISLURM_GRACE           seconds that a preempted job has before it is ended (120)
#
# Jobs of the partition `urgent` preempt those of `main`, the default: these are signalled as their --signal says, and
# after the grace ended and requeued.
#
# Every machine, one head and N nodes, is a set of Linux namespaces: own host name, address, ports, /dev/shm, temporary
# folder and processes. Other files are shared, as home folders are. The nodes' process namespaces lie inside the
# head's: when the head's first process dies, the kernel ends every process of the cluster and removes its network.
# Nothing outside MINISLURM_DIR is changed. Needs root with CAP_SYS_ADMIN; no cgroups, no systemd.
set -euo pipefail

DIR=${MINISLURM_DIR:-/tmp/minislurm}
NET=10.213.0 # seen inside the cluster's own network only
HEAD_IP=$NET.250
MAC=02:00:0a:d5:00
SELF=$(readlink -f "$0")
export SLURM_CONF=$DIR/slurm.conf

die() {
    echo "minislurm: $*" >&2
    exit 1
}

check() {
    local program package
    while read -r program package; do
        command -v "$program" >/dev/null || { echo "$program is not installed (Debian: $package)"; return 3; }
    done <<<$'slurmctld slurmctld\nslurmd slurmd\nsbatch slurm-client\nmunged munge\nip iproute2\nnsenter util-linux'
    [ "$(id -u)" = 0 ] || { echo "a Slurm cluster in namespaces needs root"; return 3; }
    unshare --net --uts --ipc --mount --pid --fork mount -t tmpfs tmpfs /dev/shm 2>/dev/null ||
        { echo "namespaces with mounts of their own are not allowed here (CAP_SYS_ADMIN)"; return 3; }
    unshare --net sh -c 'ip link add br0 type bridge && ip link add one type veth peer name two' 2>/dev/null ||
        { echo "the kernel offers no bridge or veth devices"; return 3; }
}

alive() { # Whether the first process of a machine runs. Its arguments tell it from one that reuses its number.
    local pid
    pid=$(cat "$DIR/pid/$1" 2>/dev/null) && [ -n "$pid" ] &&
        { tr '\0' ' ' <"/proc/$pid/cmdline" | grep -qF "_machine $1 $DIR "; } 2>/dev/null
}

write_config() {
    local n=$1 i
    mkdir -p "$DIR"/{pid,log,state,munge,spool}
    : >"$DIR/.minislurm"
    (umask 077 && head -c 128 /dev/urandom >"$DIR/munge/key")
    {
        printf '%s\n' "127.0.0.1 localhost" "::1 localhost" "$HEAD_IP head"
        for ((i = 1; i <= n; i++)); do echo "$NET.$i node$i"; done
    } >"$DIR/hosts"
    # What clusters do whose nodes have a disk for each job.
    printf '%s\n' '#!/bin/sh' 'echo export TMPDIR=/dev/shm/tmp' >"$DIR/task_prolog"
    chmod +x "$DIR/task_prolog"
    for ((i = 0; i < 8; i++)); do ln -sf /dev/null "$DIR/gpu$i"; done
    echo "NodeName=node[1-$n] Name=gpu File=$DIR/gpu[0-7]" >"$DIR/gres.conf"
    cat >"$DIR/slurm.conf" <<EOF
ClusterName=mini
SlurmctldHost=head($HEAD_IP)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a requeued job is held: two minutes if not given.
AuthInfo=socket=$DIR/munge/sock,cred_expire=5
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool/%n
SlurmctldPidFile=$DIR/pid/slurmctld
SlurmdPidFile=$DIR/pid/slurmd.%n
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd.%n.log
TaskProlog=$DIR/task_prolog
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,bf_min_age_reserve=0
# Long if not given, since a test machine may be slow.
SlurmdTimeout=${MINISLURM_SLURMD_TIMEOUT:-120}
KillWait=${MINISLURM_KILL_WAIT:-30}
MinJobAge=3600
CompleteWait=0
# A node whose processes take longer to die is taken out of service: not here, where machines may be slow.
UnkillableStepTimeout=900
JobRequeue=1
# What launch/pretrain.sbatch asks for: 8 tasks of 8 CPUs, and 8 GPUs. Accepted, not enforced.
NodeName=node[1-$n] CPUs=64 RealMemory=500000 Gres=gpu:8 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
PartitionName=DEFAULT Nodes=ALL MaxTime=INFINITE DefaultTime=10
PartitionName=main Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=${MINISLURM_GRACE:-120}
PartitionName=urgent PriorityTier=9 PreemptMode=OFF
EOF
}

machine() { # The first process of a machine. /proc is still the host's, so that stat shows the number seen there.
    local name=$1 pid headns
    read -r pid _ </proc/self/stat
    hostname "$name"
    ip link set lo up
    if [ "$name" = head ]; then
        mount --bind "$DIR/hosts" /etc/hosts
        ip link add br0 address "$MAC:fa" type bridge
        ip addr add "$HEAD_IP/24" dev br0
        ip link set br0 up
        munged --force --key-file="$DIR/munge/key" --socket="$DIR/munge/sock" --pid-file="$DIR/munge/pid" \
            --log-file="$DIR/munge/log" --seed-file="$DIR/munge/seed"
        slurmctld -D -i &
    else
        headns=/proc/$(cat "$DIR/pid/head")/ns/net
        # Where the node has crashed, the kernel may not have removed its old one yet.
        nsenter --net="$headns" ip link del "$name" 2>/dev/null || true
        nsenter --net="$headns" ip link add "$name" type veth peer name eth0 netns 1 # 1 is this process
        nsenter --net="$headns" ip link set "$name" master br0 up
        # A machine keeps its hardware address: the others would go on sending to the one that they know, for half a minute.
        ip link set eth0 address "$MAC:$(printf %02x "${name#node}")"
        ip addr add "$NET.${name#node}/24" dev eth0
        ip link set eth0 up
        mount -t tmpfs tmpfs /dev/shm
        mkdir -m 1777 /dev/shm/tmp
        mount -t proc proc /proc
        mkdir -p "$DIR/spool/$name"
        slurmd -D -N "$name" &
    fi
    echo "$pid" >"$DIR/pid/$name"
    if [ "$name" = head ] && [ -n "${MINISLURM_OWNER:-}" ]; then
        while [ -d "/proc/$MINISLURM_OWNER" ]; do sleep 1; done
        rm -rf "$DIR"
        exit
    fi
    sleep infinity &
    while :; do wait || true; done # reaps orphans
}

spawn() { # Start a machine in the background: the head from here, nodes from inside the head.
    local name=$1 i enter_head=()
    [ "$name" = head ] || enter_head=(nsenter -t "$(cat "$DIR/pid/head")" --net --uts --ipc --mount --pid)
    rm -f "$DIR/pid/$name"
    env -u LD_PRELOAD setsid "${enter_head[@]}" unshare --net --uts --ipc --mount --pid --fork --kill-child=KILL \
        "$SELF" _machine "$name" "$DIR" "" </dev/null >>"$DIR/log/$name.log" 2>&1 &
    for ((i = 0; i < 600; i++)); do
        alive "$name" && return
        sleep 0.05
    done
    cat "$DIR/log/$name.log" >&2
    die "$name did not come up"
}

start() {
    local n=${1:-2} i up=0
    check >&2 || exit 3
    [ ${#DIR} -le 60 ] || die "MINISLURM_DIR is too long for the paths of sockets: $DIR"
    [ -e "$DIR/.minislurm" ] || [ -z "$(ls -A "$DIR" 2>/dev/null)" ] || die "$DIR is not empty"
    stop
    rm -rf "$DIR"/{log,state,munge,spool}
    write_config "$n"
    spawn head
    for ((i = 1; i <= n; i++)); do spawn "node$i"; done
    for ((i = 0; i < 600; i++)); do
        up=$("$SELF" exec sinfo -h -N -p main -o %T 2>/dev/null | grep -c '^idle$' || true)
        [ "$up" = "$n" ] && return
        sleep 0.1
    done
    tail -n 20 "$DIR"/log/*.log >&2
    die "only $up of $n nodes came up"
}

stop() {
    local i
    if alive head; then
        kill -KILL "$(cat "$DIR/pid/head")"
        for ((i = 0; i < 600; i++)); do
            alive head || break
            sleep 0.05
        done
        alive head && die "could not be stopped"
    fi
    rm -rf "$DIR/pid"
}

boot() {
    alive "$1" && die "$1 is running"
    [ -d "$DIR/spool/$1" ] || die "there is no node $1"
    # Slurm does not notice that a node was away for less than SlurmdTimeout, and would wait for its jobs.
    "$SELF" exec scontrol update NodeName="$1" State=DOWN Reason=crashed
    spawn "$1"
}

case ${1:-} in
    check) check ;;
    start) start "${2:-2}" ;;
    stop) stop ;;
    exec)
        shift
        alive head || die "no cluster runs in $DIR"
        exec nsenter -t "$(cat "$DIR/pid/head")" --net --uts --ipc --mount --wdns="$PWD" "$@"
        ;;
    on)
        node=${2:-}
        alive "$node" || die "$node is not running"
        shift 2
        exec nsenter -t "$(cat "$DIR/pid/$node")" --net --uts --ipc --mount --pid --wdns="$PWD" "$@"
        ;;
    crash)
        alive "${2:-}" || die "${2:-} is not running"
        kill -KILL "$(cat "$DIR/pid/$2")"
        ;;
    boot) boot "${2:-}" ;;
    _machine)
        DIR=$3
        export SLURM_CONF=$DIR/slurm.conf
        machine "$2"
        ;;
    *)
        sed -n '2,/^set/{/^#/p}' "$0"
        exit 2
        ;;
esac
