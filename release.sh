#!/bin/sh
# Makes what a release consists of, in dist/: an archive with the program, a wheel of the Python module, and their checksums.
set -eu
cd "$(dirname "$0")"

cargo build --release --locked
program=target/release/ddpm-ip
name="ddpm-ip-$($program --version | cut -d' ' -f2)-$(rustc -vV | sed -n 's/^host: //p')"
rm -rf dist
mkdir -p "dist/$name/completions"
cp "$program" README.md LICENSE THIRD-PARTY.txt CHANGELOG.md "dist/$name"
for shell in bash zsh fish; do "$program" completions "$shell" >"dist/$name/completions/ddpm-ip.$shell"; done
tar --sort=name --mtime="@$(git log -1 --format=%ct)" --owner=0 --group=0 --numeric-owner -C dist -cf - "$name" |
    gzip -9n >"dist/$name.tar.gz"
rm -r "dist/$name"
python3 -m pip wheel --quiet --no-deps --wheel-dir dist .
(cd dist && sha256sum -- *.tar.gz *.whl >SHA256SUMS && cat SHA256SUMS)
