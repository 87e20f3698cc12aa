#!/usr/bin/env bash
# Made the certificates beside it, which last until 2125; the keys of the authorities are not kept.
# Run it with OpenSSL 3 to have new ones.
set -euo pipefail
cd "$(dirname "$0")"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

key() { # FILE
  openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:prime256v1 -out "$1"
}

certificate() { # FILE NAME KEY FROM TO SIGNED-BY...; what it may do comes on stdin
  { cat <<CONFIG
[ca]
default_ca = here
[here]
new_certs_dir = $scratch
database = $scratch/database
rand_serial = yes
default_md = sha256
policy = any
x509_extensions = extensions
[any]
commonName = supplied
[extensions]
subjectKeyIdentifier = hash
CONFIG
    cat; } > "$scratch/config"
  : > "$scratch/database"
  openssl req -new -key "$3" -subj "/CN=$2" -out "$scratch/request"
  openssl ca -batch -notext -config "$scratch/config" -in "$scratch/request" -out "$1.pem" \
    -startdate "$4" -enddate "$5" "${@:6}"
}

authority() { # FILE NAME
  key "$scratch/$1.key"
  certificate "$1" "$2" "$scratch/$1.key" 20240101000000Z 21250101000000Z -selfsign -keyfile "$scratch/$1.key" <<'END'
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
END
}

server() { # FILE ALTERNATIVE-NAMES FROM TO
  certificate "$1" "fedbus test broker" server.key "$3" "$4" -cert ca.pem -keyfile "$scratch/ca.key" <<END
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth
authorityKeyIdentifier = keyid
subjectAltName = $2
END
}

authority ca "fedbus test authority"
authority other-ca "fedbus other authority"
key server.key
here=IP:127.0.0.1,IP:::1,DNS:localhost
server server "$here" 20240101000000Z 21250101000000Z
server elsewhere DNS:hub.example.org 20240101000000Z 21250101000000Z
server expired "$here" 20240101000000Z 20250101000000Z
