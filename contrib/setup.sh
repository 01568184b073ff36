#!/usr/bin/env bash
# Installs what demo and tests need and this machine lacks: Debian packages only, nothing that is there already.
# A plain user gets the list of what is missing and exit code 1; root (or sudo without a password) gets it installed.
#
#   contrib/setup.sh            everything for `make demo`, `make test` and `make test-all`
#   KERNEL_DIR=… contrib/setup.sh    where a guest kernel is unpacked when /boot has none
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
kernel_dir=${KERNEL_DIR:-${CARGO_TARGET_DIR:-$root/target}/guest-kernel}

# Which command comes from which package.
tools=(
  qemu-system-x86_64:qemu-system-x86
  busybox:busybox-static
  cpio:cpio
  modinfo:kmod
  ip:iproute2
  unshare:util-linux
  perl:perl-base
  cc:gcc
  c++:g++
  make:make
  dhclient:isc-dhcp-client
  dhcpcd:dhcpcd-base
  mandoc:mandoc
  tcpdump:tcpdump
  nft:nftables
  ping:iputils-ping
  tracepath:iputils-tracepath
  traceroute:traceroute
  setpriv:util-linux
  curl:curl
  setcap:libcap2-bin
  apparmor_parser:apparmor
  checkmodule:checkpolicy
  semodule_package:semodule-utils
)

# Debian 12 has libvirt 9.0, which starts passt in its own way; its backports have a libvirt, and a QEMU that reconnects.
# The tests that need them skip without.
backports=bookworm-backports
backported=(
  libvirt-daemon libvirt-daemon-driver-qemu libvirt-daemon-common libvirt-daemon-log libvirt-clients libvirt-common libvirt0
  qemu-system-x86 qemu-system-common qemu-system-data qemu-utils qemu-block-extra
)

# The firmware of virtio-net, for the machine that boots over the network, where distributions have it.
firmware=({/usr/lib/ipxe/qemu,/usr/share/ipxe/qemu,/usr/share/qemu}/efi-virtio.rom)

missing_packages() {
  local tool
  for tool in "${tools[@]}"; do
    command -v "${tool%%:*}" >/dev/null || printf '%s\n' "${tool##*:}"
  done
  [ -n "$(find "${firmware[@]}" 2>/dev/null)" ] || echo ipxe-qemu
}

# The dynamic busybox of Debian has no DHCP client and does not run without the host's libraries.
static_busybox() {
  busybox --list 2>/dev/null | grep -qx udhcpc && ! ldd "$(command -v busybox)" >/dev/null 2>&1
}

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

install_packages() {
  local packages
  mapfile -t packages < <({ missing_packages; static_busybox || echo busybox-static; } | sort -u)
  [ "${#packages[@]}" -gt 0 ] || return 0
  if ! command -v apt-get >/dev/null || ! as_root true 2>/dev/null; then
    echo "setup: please install: ${packages[*]}" >&2
    return 1
  fi
  echo "setup: installing ${packages[*]}"
  export DEBIAN_FRONTEND=noninteractive
  as_root apt-get update -qq
  as_root apt-get install -qq -y --no-install-recommends "${packages[@]}" >/dev/null
}

# Where the system is not Debian 12, or its archive out of reach, the machine stays as it is.
install_libvirt() {
  local source=/etc/apt/sources.list.d/$backports.list
  command -v libvirtd >/dev/null && return 0
  grep -qs '^VERSION_CODENAME=bookworm' /etc/os-release && as_root true 2>/dev/null || return 0
  echo "setup: installing libvirt and QEMU of $backports"
  export DEBIAN_FRONTEND=noninteractive
  if ! apt-cache policy libvirt-daemon | grep -q "$backports"; then
    echo "deb http://deb.debian.org/debian $backports main" | as_root tee "$source" >/dev/null
    as_root apt-get update -qq
  fi
  as_root apt-get install -qq -y --no-install-recommends "${backported[@]/%//$backports}" >/dev/null ||
    echo "setup: no libvirt of $backports: its tests will be skipped"
}

# The guest runs Debian's cloud kernel. Unpacking it is enough: nothing of it is installed on this machine.
unpack_kernel() {
  "$root/contrib/demo/kernel" >/dev/null 2>&1 && return 0
  local package
  package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/.*Depends: //p' | head -n 1)
  if [ -z "$package" ] && as_root true 2>/dev/null; then
    as_root apt-get update -qq
    package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: //p' | head -n 1)
  fi
  [ -n "$package" ] || { echo "setup: no guest kernel: apt knows no linux-image-cloud-amd64" >&2; return 1; }
  echo "setup: unpacking $package into $kernel_dir"
  mkdir -p "$kernel_dir"
  (cd "$kernel_dir" && apt-get download -qq -o APT::Sandbox::User= "$package" && dpkg -x "$package"_*.deb . && rm "$package"_*.deb)
}

install_packages
install_libvirt
unpack_kernel
