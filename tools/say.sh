# What the scripts beside this one share: words, and Debian packages. To be sourced.

say() { printf '\033[1m%s\033[0m\n' "$*"; }
fail() { printf '%s\n' "$*" >&2; exit 1; }

apt_install() {
    command -v apt-get >/dev/null || fail "This machine has no apt-get. Please install: $*, then run make again."
    local root=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || fail "Please ask an administrator to run: apt-get install $*"
        root=(sudo)
    fi
    say "Installing Debian packages: $*"
    (
        flock 9  # one at a time: images may be built while an environment is made
        "${root[@]}" apt-get update -qq
        "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
    ) 9>"${TMPDIR:-/tmp}/wovr-apt.lock"
}
