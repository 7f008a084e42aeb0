# Finds a Docker engine, or starts one of our own where there is none and we are root. To be sourced, after say.sh.
#
#   WOVR_DOCKER=/var/tmp/wovr-docker   where an engine of our own keeps its images and its socket
#
# Afterwards DOCKER_HOST says where it is (unless it is the machine's own) and $docker is a client that can build with it.

engine_folder=${WOVR_DOCKER:-/var/tmp/wovr-docker}

find_engine() {  # whether one answers
    docker=$(command -v docker) || return 1
    docker info >/dev/null 2>&1 && return
    [ -S "$engine_folder/docker.sock" ] || return 1
    DOCKER_HOST=unix://$engine_folder/docker.sock docker info >/dev/null 2>&1 || return 1
    export DOCKER_HOST=unix://$engine_folder/docker.sock
}

start_engine() {  # says what is missing where none can be had
    local waited
    if find_engine; then choose_client; return; fi
    if [ "$(id -u)" -ne 0 ]; then
        say "No Docker engine answers${DOCKER_HOST:+ at $DOCKER_HOST}, and only root can start one. Start Docker, or say where it is with DOCKER_HOST."
        return 1
    fi
    if ! command -v dockerd >/dev/null; then
        command -v apt-get >/dev/null || { say "There is no dockerd, and no apt-get to install it with: install Docker."; return 1; }
        local packages=docker.io
        apt-cache show docker-buildx >/dev/null 2>&1 && packages="docker.io docker-cli docker-buildx"  # of Debian 13
        (apt_install $packages) || { say "Docker's engine could not be installed (the Debian package docker.io)."; return 1; }
    fi
    mkdir -p "$engine_folder"
    say "Starting a Docker engine in $engine_folder"
    # without a network of its own: containers take the machine's
    setsid dockerd --host "unix://$engine_folder/docker.sock" --data-root "$engine_folder/data" \
        --exec-root "$engine_folder/exec" --pidfile "$engine_folder/docker.pid" \
        --bridge=none --iptables=false >"$engine_folder/log" 2>&1 </dev/null &
    for waited in $(seq 60); do
        sleep 0.5
        if find_engine; then engine_started=yes; choose_client; return; fi
        kill -0 $! 2>/dev/null || break
    done
    kill $! 2>/dev/null || true
    say "A Docker engine could not be started here. Its last words ($engine_folder/log):"
    grep -E 'level=(error|fatal)|failed' "$engine_folder/log" | tail -n 3 || true
    return 1
}

stop_engine() { if [ "${engine_started:-}" = yes ]; then kill "$(cat "$engine_folder/docker.pid")"; fi; }

choose_client() {  # a new client builds with its buildx plugin only, one of Debian 12 by itself
    local one
    for one in "$docker" /usr/bin/docker; do
        if [ -x "$one" ] && { "$one" buildx version || [ "$("$one" version --format '{{.Client.Version}}' | cut -d. -f1)" -lt 23 ]; } >/dev/null 2>&1; then
            docker=$one
            return
        fi
    done
    say "The client $docker cannot build with BuildKit: install its buildx plugin."
    return 1
}
