#!/usr/bin/env bash
# Writes down what each image is made of: a CycloneDX bill of materials of its Python environment, and the list of its
# Debian packages, into build/sbom. Called by `make sbom`, after `make images`; images that are not there are left out.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/say.sh
. tools/engine.sh
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
out=build/sbom
tool=$out/.tool
mkdir -p "$out"
find_engine || fail "No Docker engine answers: make images starts one where there is none, DOCKER_HOST says where yours is."
if [ ! -x "$tool/bin/cyclonedx-py" ]; then
    say "Installing cyclonedx-bom into $tool"
    python3 -m venv "$tool"
    "$tool/bin/python" -m pip install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0
fi

for image in "wovr:$version" "wovr-sim:$version" "wovr-triton:$version" "wovr-robot:$version"; do
    "$docker" image inspect "$image" >/dev/null 2>&1 || { say "there is no image $image: make images"; continue; }
    name=${image%%:*}
    inside=$(mktemp -d)
    # what packages say of themselves, in an environment that is otherwise empty
    python3 -m venv --without-pip "$inside/venv"
    packages=$(echo "$inside"/venv/lib/python3*/site-packages)
    "$docker" run --rm --network none --read-only --entrypoint sh "$image" -c \
        'cd /opt/venv/lib/python3*/site-packages && tar -c *.dist-info' | tar -C "$packages" -x
    "$tool/bin/cyclonedx-py" environment "$inside/venv" --output-reproducible --output-file "$out/$name.json"
    "$docker" run --rm --network none --read-only --entrypoint sh "$image" -c \
        'dpkg-query -W -f "\${Package}=\${Version}\n"' >"$out/$name.debian.txt"
    rm -rf "$inside"
    say "$out/$name.json: $(grep -c '"bom-ref"' "$out/$name.json") components, $(wc -l <"$out/$name.debian.txt") Debian packages"
done
