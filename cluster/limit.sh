# shellcheck shell=bash
# Control groups that limit block devices, version 1 or 2; for the scripts of this folder. What the
# kernel refuses is said, and gives 69: a command that was to be limited must not run without.
# Callers check each call, as `set -e` does not hold within $( ) and beside ||.

# Writes a value to a file of a control group.
write_to_group() {
    local reason
    reason=$({ echo "$1" >"$2"; } 2>&1) && return
    echo "the kernel refuses '$1' in $2: ${reason##*: }" >&2
    return 69
}

# Makes a group of this name, and prints its path.
make_limit_group() {
    local group
    if [ -e /sys/fs/cgroup/cgroup.controllers ] && grep -qw io /sys/fs/cgroup/cgroup.controllers; then
        group=/sys/fs/cgroup/$1
        write_to_group +io /sys/fs/cgroup/cgroup.subtree_control || return
    elif [ -d /sys/fs/cgroup/blkio ]; then
        group=/sys/fs/cgroup/blkio/$1
    else
        echo "this machine has no io or blkio control group" >&2
        return 69
    fi
    mkdir -p "$group" || return 69
    echo "$group"
}

# Limits a device, by its numbers (such as 7:1), in a group to a speed in MB/s, each way.
limit_device() {
    if [ -e "$1/io.max" ]; then
        write_to_group "$2 rbps=${3}000000 wbps=${3}000000" "$1/io.max"
    else
        write_to_group "$2 ${3}000000" "$1/blkio.throttle.read_bps_device" &&
            write_to_group "$2 ${3}000000" "$1/blkio.throttle.write_bps_device"
    fi
}

# Moves a process, and what it starts from then on, into a group.
join_limit_group() {
    write_to_group "$2" "$1/cgroup.procs"
}
