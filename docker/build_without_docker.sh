#!/usr/bin/env bash
# Build the image, and try it, where there is no Docker daemon and no image registry. As root, on Debian or Ubuntu with
# buildah and debootstrap (apt-get install buildah debootstrap). It takes up to 25 GB of disk while it builds, 7 GB after.
#
#   docker/build_without_docker.sh                               base by debootstrap, build, try experiments/quickstart/*.json
#   docker/build_without_docker.sh experiments/o2u_20.json       try it with these files (paths as the container sees them)
#   ROOTFS=/some/rootfs docker/build_without_docker.sh           base from an unpacked Debian or Ubuntu
#
# RUNS, DATA      folders mounted as /work/mlruns and /work/data (default: temporary ones, deleted at the end)
# SUITE, MIRROR   what debootstrap takes, and from where (default: bookworm, debootstrap's own choice)
# STORAGE_DRIVER  vfs where overlay mounts are not allowed (default: buildah's choice)
#
# Packages come from where this machine's pip takes them: PIP_CONFIG_FILE, else /etc/pip.conf, and PIP_CERT or
# SSL_CERT_FILE are handed to the build as secrets, which stay out of the image.
# The image is kept as localhost/nlt. `buildah push localhost/nlt docker-archive:nlt.tar:nlt` makes a file for `docker load`.
set -euo pipefail
cd "$(dirname "$0")/.."
export BUILDAH_ISOLATION=${BUILDAH_ISOLATION:-chroot} # runs in places that allow no new namespaces for containers
driver=${STORAGE_DRIVER:-}
buildah() { command buildah ${driver:+--storage-driver "$driver"} "$@"; } # Debian's buildah overlooks the variable
image=localhost/nlt
container=
temporary=$(mktemp -d -p "${TMPDIR:-/var/tmp}")
clean_up() {
    [ -z "$container" ] || buildah rm "$container" >/dev/null || true
    rm -rf --one-file-system "$temporary"
}
trap clean_up EXIT
say() { printf '\n== %(%H:%M:%S)T %s\n' -1 "$1"; }

if buildah inspect --type image "$image-base" >/dev/null 2>&1; then
    say "base image: $image-base is there already (for a new one: buildah rmi $image-base)"
else
    say "base image"
    if [ -z "${ROOTFS:-}" ]; then
        ROOTFS=$temporary/rootfs
        debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates \
            "${SUITE:-bookworm}" "$ROOTFS" ${MIRROR:+"$MIRROR"} >"$temporary/debootstrap.log" ||
            { tail -n 20 "$temporary/debootstrap.log"; exit 1; }
    fi
    container=$(buildah from scratch)
    root=$(buildah mount "$container")
    # tar keeps owners and modes; the packages that debootstrap downloaded stay behind
    tar -C "$ROOTFS" --one-file-system --exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*' -c . |
        tar -C "$root" -x --numeric-owner
    buildah umount "$container" >/dev/null
    buildah commit --quiet --rm "$container" "$image-base" >/dev/null
    container=
fi

say "build"
options=()
pip_conf=${PIP_CONFIG_FILE:-/etc/pip.conf} ca=${PIP_CERT:-${SSL_CERT_FILE:-}}
if [ -s "$pip_conf" ]; then options+=(--secret "id=pip_conf,src=$pip_conf"); fi
if [ -s "$ca" ]; then options+=(--secret "id=ca,src=$ca" --build-arg PIP_CERT=/run/secrets/ca); fi
# Layers let the next build reuse the dependencies; with vfs each would be a copy of the 6 GB below it.
if [ "$driver" = vfs ]; then options+=(--layers=false); else options+=(--layers=true); fi
commit=$(git describe --always --dirty --abbrev=40 --exclude='*' 2>/dev/null || echo unknown)
buildah build "${options[@]}" --build-arg BASE_IMAGE="$image-base" --build-arg GIT_COMMIT="$commit" \
    --file docker/Dockerfile --tag "$image" .
buildah images "$image"

say "try: as uid 1000"
RUNS=${RUNS:-$temporary/mlruns} DATA=${DATA:-$temporary/data}
mkdir -p "$RUNS" "$DATA"
container=$(buildah from "$image")
# buildah 1.28 may mount the image's own volumes over ours; Docker does not
buildah config --volume /work/mlruns- --volume /work/data- "$container"
if [ $# -eq 0 ]; then set -- experiments/quickstart/*.json; fi
threads=${OMP_NUM_THREADS:+OMP_NUM_THREADS=$OMP_NUM_THREADS}
in_container() {
    buildah run --user 1000:1000 ${threads:+--env "$threads"} \
        --volume "$RUNS:/work/mlruns" --volume "$DATA:/work/data" "$container" -- "$@"
}
chown -R 1000:1000 "$RUNS" "$DATA"
in_container nlt --help
in_container nlt doctor
in_container nlt launch "$@"
in_container nlt compare

say "try: as a uid that the image does not know, read-only root, no capabilities"
# buildah has no switch for a read-only root: what `docker run --read-only --tmpfs /tmp --cap-drop ALL
# --security-opt no-new-privileges --user 4242:4242` does, by hand.
chown -R 4242:4242 "$RUNS" "$DATA"
root=$(buildah mount "$container")
mapfile -t environment < <(buildah inspect --format '{{range .OCIv1.Config.Env}}{{println .}}{{end}}' "$container" | grep .)
unshare --mount --pid --fork bash -euc '
    root=$1 runs=$2 data=$3
    shift 3
    mount --bind "$root" "$root"
    mount -o remount,bind,ro "$root"
    mount -t tmpfs -o mode=1777,noexec,nosuid,nodev,size=64m tmpfs "$root/tmp" # as --tmpfs /tmp
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    mount --bind "$runs" "$root/work/mlruns"
    mount --bind "$data" "$root/work/data"
    exec chroot "$root" setpriv --reuid 4242 --regid 4242 --clear-groups --bounding-set=-all --inh-caps=-all \
        --no-new-privs env --ignore-environment --chdir /work "$@"
' bash "$root" "$RUNS" "$DATA" "${environment[@]}" ${threads:+"$threads"} sh -euc '
    id
    grep -E "CapEff|NoNewPrivs" /proc/self/status
    if touch /work/file 2>/dev/null; then echo "the root file system is writable"; exit 1; fi
    nlt launch "$1" --seed 1
    nlt compare' sh "$1"
buildah umount "$container" >/dev/null
chown -R "$(id -u):$(id -g)" "$RUNS" "$DATA"
say "done: $image"
