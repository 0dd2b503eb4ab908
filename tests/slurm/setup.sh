#!/bin/bash
# Starts Slurm on this machine, in a folder of its own: a controller and two nodes, without accounting.
#   tests/slurm/setup.sh start FOLDER    (as root; then: export SLURM_CONF=FOLDER/slurm.conf)
#   tests/slurm/setup.sh stop FOLDER
# Needs slurmctld, slurmd and munge: apt-get install --no-install-recommends slurm-wlm munge
set -euo pipefail
folder=$(mkdir -p "${2:?a folder}" && cd "$2" && pwd)

start() {
  # Several of these may run on one machine: ports of its own, and jobs whose numbers, which give ports, differ.
  local port=$((20000 + $$ % 10000))
  mkdir -p "$folder"/{state,spool1,spool2,munge}
  # munged refuses folders that others may write to.
  chmod 755 "$folder" "$folder/munge"
  [ -s "$folder/munge/key" ] || (umask 077 && head -c 1024 /dev/urandom > "$folder/munge/key")
  munged --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munge/pid" \
    --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" --force
  # Nodes are named by loopback addresses, which every machine resolves.
  cat > "$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$port
FirstJobId=$((1 + $$ % 9000))
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A job that is queued again may start as soon as credentials have expired: by default after 2 minutes.
AuthInfo=socket=$folder/munge/socket,cred_expire=10
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=60
NodeName=127.0.0.2 NodeHostname=$(hostname -s) NodeAddr=127.0.0.2 Port=$((port + 1)) CPUs=$(nproc) State=UNKNOWN
NodeName=127.0.0.3 NodeHostname=$(hostname -s) NodeAddr=127.0.0.3 Port=$((port + 2)) CPUs=$(nproc) State=UNKNOWN
PartitionName=batch Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
CONF
  export SLURM_CONF="$folder/slurm.conf"
  slurmctld
  slurmd -N 127.0.0.2
  slurmd -N 127.0.0.3
  for _ in $(seq 60); do
    [ "$(sinfo -h -o %t -p batch 2>/dev/null)" = idle ] && return 0
    sleep 0.5
  done
  echo "Slurm does not get ready:" >&2; sinfo >&2 || true; tail -n 20 "$folder"/*.log >&2
  return 1
}

stop() {
  for pid in "$folder"/slurmd-*.pid "$folder/slurmctld.pid" "$folder/munge/pid"; do
    [ -s "$pid" ] || continue
    number=$(cat "$pid")
    kill "$number" 2>/dev/null || continue
    for _ in $(seq 100); do kill -0 "$number" 2>/dev/null || break; sleep 0.1; done
  done
}

case "${1:?start or stop}" in start) start ;; stop) stop ;; *) exit 2 ;; esac
