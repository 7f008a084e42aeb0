#!/usr/bin/env bash
# Builds the images, runs each as it will be run (no root, nothing writable but /tmp, no network) and tells their sizes.
# Called by `make images`; safe to repeat, what has not changed is not built again.
#
#   tools/images.sh train sim        some of them: base, train, sim, triton, robot (those they build on come along)
#   BASE=python:3.11-slim            what the base is built on; where it cannot be pulled, Debian 12 by debootstrap
#   TORCH_INDEX=URL                  an extra package index for torch, as for tools/setup.sh
#   WOVR_DOCKER=FOLDER               where to start an engine if none answers (tools/engine.sh)
#
# Indexes, wheels and certificates that pip is configured with here are lent to the builds and to nothing else
# (tools/pip_for_builds.py).
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/say.sh
. tools/engine.sh
export DOCKER_BUILDKIT=1
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
revision=$(git describe --always --dirty --abbrev=40 2>/dev/null || echo unknown)
secrets=$(mktemp -d)
trap 'rm -rf "$secrets"' EXIT

cannot() { printf '%s\n' "$*" >&2; exit 3; }  # something is missing here, which is no fault of the images
name() { case $1 in train) echo "wovr:$version" ;; *) echo "wovr-$1:$version" ;; esac; }

debian() {  # a small Debian 12 with its Python 3.11, where no registry gives us one
    local root=/var/tmp/wovr-debian.$$ made=0
    [ "$(id -u)" -eq 0 ] || cannot "$base cannot be pulled, and only root can make a base with debootstrap: name one that is here with BASE=."
    command -v debootstrap >/dev/null || apt_install debootstrap
    say "$base cannot be pulled: making a base of Debian 12 (two minutes)"
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$root" \
        >"$secrets/debootstrap.log" 2>&1 || made=$?
    if [ "$made" -eq 0 ]; then
        # nothing of this machine, and nothing that is only for people
        chroot "$root" apt-get clean
        rm -rf "$root"/{var/lib/apt/lists,var/cache/apt,usr/share/doc,usr/share/man,usr/share/locale}/* "$root"/var/log/*log
        : >"$root/etc/resolv.conf"
        echo wovr >"$root/etc/hostname"
        tar -C "$root" --one-file-system -c . | "$docker" import --change 'CMD ["python3"]' - localhost/python:3.11-slim >/dev/null
    fi
    rm -rf "$root"
    [ "$made" -eq 0 ] || { tail -n 5 "$secrets/debootstrap.log" >&2; cannot "debootstrap failed."; }
}

find_base() {
    base=${BASE:-python:3.11-slim}
    if "$docker" image inspect "$base" >/dev/null 2>&1 || "$docker" pull -q "$base" >/dev/null 2>&1; then return; fi
    [ -z "${BASE:-}" ] || cannot "$BASE is not here and cannot be pulled."
    "$docker" image inspect localhost/python:3.11-slim >/dev/null 2>&1 || debian
    base=localhost/python:3.11-slim
}

build() {  # of one image, on those it builds on
    local image=$1 file on begun=$SECONDS
    case $image in
        base) file=Dockerfile on=$base ;;
        sim) file=images/sim/Dockerfile on=$(name train) ;;
        *) file=images/$image/Dockerfile on=$(name base) ;;
    esac
    local proxies=() proxy
    for proxy in HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy; do
        if [ -n "${!proxy:-}" ]; then proxies+=(--build-arg "$proxy"); fi
    done
    python3 tools/pip_for_builds.py "$secrets" "$docker" build --progress plain --network host --file "$file" \
        --secret "id=pip.conf,src=$secrets/pip.conf" --secret "id=ca.pem,src=$secrets/ca.pem" "${proxies[@]}" \
        --build-arg BASE="$on" --build-arg TORCH_INDEX="${TORCH_INDEX:-}" \
        --build-arg VERSION="$version" --build-arg REVISION="$revision" \
        --tag "$(name "$image")" . >"$secrets/build.log" 2>&1 \
        || { tail -n 40 "$secrets/build.log" >&2; fail "$file could not be built."; }
    say "$(name "$image") is built ($((SECONDS - begun)) s)"
}

smoke() {  # as it will be run, and told in its own words
    [ -f "images/$1/smoke.py" ] || return 0
    "$docker" run --rm --read-only --tmpfs /tmp --user 10001:10001 --cap-drop ALL --security-opt no-new-privileges \
        --network none --interactive "$(name "$1")" python - <"images/$1/smoke.py" 2>"$secrets/smoke.log" \
        || { tail -n 20 "$secrets/smoke.log" >&2; fail "$(name "$1") does not pass images/$1/smoke.py."; }
}

needed() { case " $* " in *" sim "*) echo base train "$@" ;; *) echo base "$@" ;; esac; }

start_engine || exit 3
find_base
"$docker" run --rm --network none "$base" true || cannot "The engine runs, but cannot start a container."
[ $# -gt 0 ] || set -- train sim triton robot
wanted=$(needed "$@" | tr ' ' '\n' | awk '!seen[$0]++')
for image in $wanted; do
    build "$image"
    smoke "$image"
done
echo
printf '%-20s %9s   %s\n' image size 'of which its own'
for image in $wanted; do
    below=$base
    case $image in base) ;; sim) below=$(name train) ;; *) below=$(name base) ;; esac
    size=$("$docker" image inspect --format '{{.Size}}' "$(name "$image")")
    printf '%-20s %6d MB   %6d MB\n' "$(name "$image")" $((size / 1000000)) \
        $(((size - $("$docker" image inspect --format '{{.Size}}' "$below")) / 1000000))
done
if [ "${engine_started:-}" = yes ]; then
    printf '\nThe engine goes on running. To use it: export DOCKER_HOST=%s   to stop it: kill $(cat %s)\n' \
        "$DOCKER_HOST" "$engine_folder/docker.pid"
fi
