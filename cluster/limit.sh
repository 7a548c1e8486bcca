# shellcheck shell=bash
# Control groups that limit block devices, version 1 or 2; for the scripts of this folder.

# Makes a group of this name, and prints its path.
make_limit_group() {
    local group
    if [ -e /sys/fs/cgroup/cgroup.controllers ] && grep -qw io /sys/fs/cgroup/cgroup.controllers; then
        group=/sys/fs/cgroup/$1
        echo +io >/sys/fs/cgroup/cgroup.subtree_control
    elif [ -d /sys/fs/cgroup/blkio ]; then
        group=/sys/fs/cgroup/blkio/$1
    else
        echo "this machine has no io or blkio control group" >&2
        return 69
    fi
    mkdir -p "$group"
    echo "$group"
}

# Limits a device, by its numbers (such as 7:1), in a group to a speed in MB/s, each way.
limit_device() {
    if [ -e "$1/io.max" ]; then
        echo "$2 rbps=${3}000000 wbps=${3}000000" >"$1/io.max"
    else
        echo "$2 ${3}000000" >"$1/blkio.throttle.read_bps_device"
        echo "$2 ${3}000000" >"$1/blkio.throttle.write_bps_device"
    fi
}
