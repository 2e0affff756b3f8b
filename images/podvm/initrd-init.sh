#!/bin/busybox sh
# Initrd of the Cloister pod VM: puts dm-verity between the disk and the root, then hands over to the root's init.
# Measured as part of the launch. Trusts nothing on the disk that the root hash on the command line does not cover.
# Each command costs tens of milliseconds under emulation, so there are few.

b=/bin/busybox

fail() {
    echo "cloister: initrd: $1" > /dev/console
    $b poweroff -f
}

$b mount -a || fail "no /dev or /proc"

verity=
read -r line < /proc/cmdline
for word in $line; do
    case $word in
        cloister.verity=*) [ -z "$verity" ] || fail "two root hashes"; verity=${word#*=} ;;
    esac
done
IFS=:
set -- $verity
IFS=' '
[ $# = 3 ] || fail "no root hash on the command line"
blocks=$1 root_hash=$2 salt=$3

read -r early < /lib/modules/early
read -r late < /lib/modules/late
$b modprobe "$early" || fail "module $early or one before it does not load"
$b modprobe "$late" &  # on another processor, if there is one; the agent misses what fails
modules=$!

/usr/sbin/dmsetup create root --readonly --noudevsync --noudevrules --table \
    "0 $((blocks * 8)) verity 1 /dev/vda /dev/vda 4096 4096 $blocks $blocks sha256 $root_hash $salt 1 panic_on_corruption" \
    || fail "the root disk is not there"
$b mount -t erofs -o ro /dev/dm-0 /root || fail "the root does not mount"
$b mount -a -T /etc/fstab.root &
mounts=$!
# What will be read anyway is read and verified ahead, on another processor: half of the agent's start is reading.
$b chroot /root /bin/busybox xargs -x /bin/busybox cat < /root/usr/lib/cloister/read-ahead > /dev/null &
wait "$mounts" || fail "the root's own mounts are not there"
wait "$modules"  # they lie in the initrd, which is about to go
exec $b switch_root /root /sbin/init
