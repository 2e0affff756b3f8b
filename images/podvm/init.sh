#!/bin/busybox sh
# PID 1 of the Cloister pod VM: mounts, then the agent as its only child, then power off. Decides nothing, logs nothing
# of the workload: the console belongs to the host.

b=/bin/busybox

$b mount -t sysfs -o nosuid,nodev,noexec none /sys
$b mount -t securityfs -o nosuid,nodev,noexec none /sys/kernel/security
$b mount -t cgroup2 -o nosuid,nodev,noexec none /sys/fs/cgroup
$b mount -t tmpfs -o mode=755,nosuid,nodev none /run
$b mount -t tmpfs -o mode=1777,nosuid,nodev none /tmp

# The image carries no OpenSSL legacy provider; without this, importing cryptography is an error.
export CRYPTOGRAPHY_OPENSSL_NO_LEGACY=1
/usr/bin/python3.13 -ISB /usr/lib/cloister/start.pyc
echo "cloister: agent ended with $?" > /dev/console
$b poweroff -f
