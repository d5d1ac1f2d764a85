#!/bin/sh
# Installs the packages of the named groups of scripts/dependencies.txt (default: build) that are not there yet.
# Never asks anything on its own; without root it goes through sudo, and says so.
set -eu
list="$(dirname "$0")/dependencies.txt"
[ $# -gt 0 ] || set -- build

missing=
total=0
for group in "$@"; do
  packages="$(awk -v group="$group" '$1 == group { print $2 }' "$list")"
  if [ -z "$packages" ]; then
    echo "setup: no group '$group' in $list" >&2
    exit 2
  fi
  for package in $packages; do
    total=$((total + 1))
    status="$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)"
    [ "$status" = installed ] || missing="$missing $package"
  done
done
if [ -z "$missing" ]; then
  echo "setup: all $total packages are installed"
  exit 0
fi

as_root=
if [ "$(id -u)" != 0 ]; then
  as_root=sudo
  if ! command -v sudo >/dev/null; then
    echo "setup: these packages are missing and this is neither root nor is there sudo; as root run:" >&2
    echo "  apt-get install --no-install-recommends$missing" >&2
    exit 1
  fi
fi
echo "setup: installing$missing${as_root:+ (with sudo)}"
# Package lists that are there may do; they are fetched anew only when they don't.
install() {
  $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends --no-remove $missing
}
install || { $as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q && install; }
