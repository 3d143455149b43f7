#!/usr/bin/env bash
# Build the image, and try it, where there is no Docker daemon and no image registry. As root, on Debian or Ubuntu with
# buildah and debootstrap (apt-get install buildah debootstrap); needs 25 GB of disk while it works.
#
#   docker/build_without_docker.sh                             base image by debootstrap, build, try
#   ROOTFS=/some/rootfs docker/build_without_docker.sh         an unpacked Debian instead (python3, python3-venv, ca-certificates)
#   docker/build_without_docker.sh experiments/o2u_20.json     try it with these files (default: experiments/quickstart/*.json)
#
# RUNS and DATA name the folders mounted as /work/mlruns and /work/data (default: temporary ones, deleted at the end).
# Packages come from where this machine's pip takes them: PIP_CONFIG_FILE, else /etc/pip.conf, and PIP_CERT or
# SSL_CERT_FILE are handed to the build as secrets and stay out of the image. An HTTP proxy is handed over by buildah.
# The image is kept as localhost/nlt; `buildah push localhost/nlt docker-archive:nlt.tar:nlt` makes a file for `docker load`.
set -euo pipefail
cd "$(dirname "$0")/.."
export STORAGE_DRIVER=${STORAGE_DRIVER:-vfs}             # no overlay file system needed; layers are copies
export BUILDAH_ISOLATION=${BUILDAH_ISOLATION:-chroot}    # no namespaces needed
BASE=localhost/nlt-base IMAGE=localhost/nlt
temporary=$(mktemp -d -p "${TMPDIR:-/var/tmp}")
container=
clean_up() {
    [ -z "$container" ] || buildah rm "$container" >/dev/null || true
    rm -rf "$temporary"
}
trap clean_up EXIT
say() { printf '\n== %s (%(%H:%M:%S)T)\n' "$1" -1; }

say "base image"
if [ -z "${ROOTFS:-}" ]; then
    ROOTFS=$temporary/rootfs
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates "${SUITE:-bookworm}" "$ROOTFS" ${MIRROR:+"$MIRROR"}
fi
container=$(buildah from scratch)
mounted=$(buildah mount "$container")
# tar keeps owners and modes; the packages that debootstrap downloaded stay behind
tar -C "$ROOTFS" --one-file-system --exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*' -c . |
    tar -C "$mounted" -x --numeric-owner
buildah config --cmd /bin/bash "$container"
buildah umount "$container" >/dev/null
buildah commit --quiet --rm "$container" "$BASE" >/dev/null
container=

say "build"
secrets=()
pip_conf=${PIP_CONFIG_FILE:-/etc/pip.conf} ca=${PIP_CERT:-${SSL_CERT_FILE:-}}
if [ -s "$pip_conf" ]; then secrets+=(--secret "id=pip_conf,src=$pip_conf"); fi
if [ -s "$ca" ]; then secrets+=(--secret "id=ca,src=$ca"); fi
commit=$(git describe --always --dirty --abbrev=40 --exclude='*' 2>/dev/null || echo unknown)
# One layer for all steps: with the vfs driver every layer would be a copy of the 6 GB below it.
buildah build --layers=false --build-arg BASE_IMAGE="$BASE" --build-arg GIT_COMMIT="$commit" "${secrets[@]}" \
    --file docker/Dockerfile --tag "$IMAGE" .
buildah images "$IMAGE"

say "try: uid 1000, then a uid that the image does not know"
RUNS=${RUNS:-$temporary/mlruns} DATA=${DATA:-$temporary/data}
mkdir -p "$RUNS" "$DATA"
chown 1000:1000 "$RUNS" "$DATA"
container=$(buildah from "$IMAGE")
in_container() { # USER COMMAND...
    local user=$1 && shift
    buildah run --user "$user" --volume "$RUNS:/work/mlruns" --volume "$DATA:/work/data" "$container" -- "$@"
}
if [ $# -eq 0 ]; then set -- experiments/quickstart/*.json; fi
in_container 1000:1000 nlt doctor
in_container 1000:1000 nlt launch "$@"
in_container 1000:1000 nlt compare
chown -R 4242:4242 "$RUNS" "$DATA"
in_container 4242:4242 nlt launch "$1" --seed 1
in_container 4242:4242 nlt compare
chown -R "$(id -u):$(id -g)" "$RUNS" "$DATA"
say "done: $IMAGE"
