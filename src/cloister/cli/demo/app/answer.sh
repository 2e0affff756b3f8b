#!/bin/busybox sh
# Reads a handwritten digit. It cannot without its model, which is secret: it asks the guest for it, at the address
# CoCo's guests use, and knows nothing of Cloister.
model=$(busybox wget -q -O - http://127.0.0.1:8006/cdh/resource/default/model/digits) || {
  echo "no model, no answer" >&2
  exit 3
}
busybox printf '%s\n' "$model" | busybox awk '
  FNR == NR { for (i = 1; i <= 35; i++) w[NR, i] = substr($2, i, 1); name[NR] = $1; n = NR; next }
  { pixels = pixels $1 }
  END {
    best = -1
    for (d = 1; d <= n; d++) {
      same = 0
      for (i = 1; i <= 35; i++) same += (w[d, i] == substr(pixels, i, 1))
      if (same > best) { best = same; answer = name[d] }
    }
    print "digit = " answer
  }' - /app/digit.txt
[ "$1" = stay ] || exit 0
while busybox sleep 1; do :; done
