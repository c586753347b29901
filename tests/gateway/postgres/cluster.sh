#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# A Postgres server that leaves nothing behind, however it ends: its data is in the memory of namespaces of its own,
# and these end with standard input.
#
#   unshare … cluster.sh PROGRAMS FOLDER PORT PASSWORD_FILE
#
# PROGRAMS has bin/postgres, FOLDER is an empty folder. Reads start and stop, line by line, and answers each with done.
set -eu
programs=$1 folder=$2 port=$3 password=$4

# Postgres refuses to run as root.
as_user() {
  unshare --user --map-user=1000 --map-group=1000 "$@" >>"$folder/log" 2>&1 </dev/null || {
    cat "$folder/log"
    exit 1
  }
}

mount -t tmpfs -o mode=0700 lmfleet "$folder"
as_user "$programs/bin/initdb" --pgdata="$folder/data" --username=lmfleet --pwfile="$password" \
  --auth=scram-sha-256 --encoding=UTF8 --no-locale --no-sync
cat >>"$folder/data/postgresql.conf" <<END
listen_addresses = '127.0.0.1'
port = $port
unix_socket_directories = ''
dynamic_shared_memory_type = mmap
fsync = off
max_connections = 100
END

while read -r command; do
  case $command in
    start) as_user "$programs/bin/pg_ctl" start --wait --pgdata="$folder/data" --log="$folder/server.log" ;;
    stop) as_user "$programs/bin/pg_ctl" stop --wait --pgdata="$folder/data" --mode=immediate ;;
  esac
  echo done
done
