#!/bin/busybox sh
# PID 1 of the Cloister pod VM: the agent as its only child, then power off. Decides nothing, logs nothing
# of the workload: the console belongs to the host.

# The image carries no OpenSSL legacy provider; without this, importing cryptography is an error.
export CRYPTOGRAPHY_OPENSSL_NO_LEGACY=1
/usr/bin/python3.13 -ISB /usr/lib/cloister/start.pyc
echo "cloister: agent ended with $?" > /dev/console
/bin/busybox poweroff -f
