# Shared by the scripts here; sourced, not run.
# shellcheck shell=bash

say() { printf '%s\n' "$*"; }
fail() {
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
  exit 1
}

# need COMMAND:PACKAGE ... installs the Debian packages whose commands are missing, asking nothing.
need() {
  local pair missing=()
  for pair in "$@"; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || missing+=("${pair#*:}")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  [ "$(id -u)" = 0 ] || fail "needs ${missing[*]}: install them, or run as root to have it done"
  command -v apt-get >/dev/null 2>&1 || fail "needs ${missing[*]}: install them with this system's package manager"
  say "installing ${missing[*]}"
  local log
  log=$(mktemp)
  if ! { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } \
    >"$log" 2>&1 </dev/null; then
    tail -n 20 "$log" >&2
    fail "could not install ${missing[*]}"
  fi
  rm -f "$log"
}

# need_rust checks for a Rust toolchain that can build this crate, and gets one where the system packages rustup.
need_rust() {
  local want have
  want=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
  if ! command -v cargo >/dev/null 2>&1; then
    [ -x "$HOME/.cargo/bin/cargo" ] && PATH="$HOME/.cargo/bin:$PATH"
  fi
  if ! command -v cargo >/dev/null 2>&1 && apt-cache show rustup >/dev/null 2>&1; then
    need rustup:rustup
    rustup default stable >/dev/null
  fi
  command -v cargo >/dev/null 2>&1 || fail "needs Rust $want or later: see https://rustup.rs"
  have=$(cargo --version | cut -d' ' -f2)
  [ "$(printf '%s\n' "$want" "$have" | sort -V | head -n 1)" = "$want" ] ||
    fail "needs Rust $want or later, found $have: run 'rustup update'"
}
