#!/usr/bin/env bash
# A nightly batch by the command line alone: enqueue a file of jobs, wait, see why some failed, retry them once.
set -euo pipefail
label="nightly=$(date +%F)"
for region in north south east west; do
    printf '{"command": "echo report of %s > report.txt", "outputs": ["report.txt"], "name": "%s", "labels": {"%s": "%s"}}\n' \
        "$region" "$region" "${label%=*}" "${label#*=}"
done | rythmiq enqueue --file - >/dev/null
rythmiq wait --label "$label" --timeout 1h || {
    rythmiq logs --label "$label" --state failed --tail 5
    rythmiq retry --label "$label" --state failed --yes
    rythmiq wait --label "$label" --timeout 1h
}
rythmiq artifacts --label "$label" --download "${1:-reports}"
rythmiq gather --label "$label" --file report.txt
