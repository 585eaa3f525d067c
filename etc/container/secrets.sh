#!/bin/sh
# Makes what compose.yaml mounts from ./secrets, and changes nothing that is there: sudo sh secrets.sh
# Each folder belongs to the user of its container, who alone can read it.
set -eu
cd "$(dirname "$0")"
umask 077
mkdir -p secrets/flowstack secrets/redis secrets/postgres secrets/haproxy

if [ ! -e secrets/flowstack/redis.secret ]; then
    openssl rand -hex 32 >secrets/flowstack/redis.secret
fi
# Redis itself keeps no more than a hash of the password.
hash=$(tr -d '\n' <secrets/flowstack/redis.secret | sha256sum | cut -d ' ' -f 1)
cat >secrets/redis/users.acl <<END
user default off
user flowstack on #$hash ~flowstack:* +@read +@write +fcall +function|load +time +select +role
END

# PostgreSQL keeps only hashes of its passwords too.
for file in secrets/flowstack/postgres.secret secrets/postgres/superuser.secret; do
    [ -e "$file" ] || openssl rand -hex 32 >"$file"
done
cp secrets/flowstack/postgres.secret secrets/postgres/flowstack.secret

# No key yet: "docker compose run --rm flowstack keys add" makes one.
[ -e secrets/flowstack/keys ] || : >secrets/flowstack/keys

# To try it. Put your own there, the certificate and its key in one file.
if [ ! -e secrets/haproxy/llm.example.com.pem ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 30 -subj /CN=llm.example.com \
        -addext subjectAltName=DNS:llm.example.com,DNS:localhost \
        -keyout secrets/haproxy/key.new -out secrets/haproxy/certificate.new 2>/dev/null
    cat secrets/haproxy/certificate.new secrets/haproxy/key.new >secrets/haproxy/llm.example.com.pem
    rm secrets/haproxy/certificate.new secrets/haproxy/key.new
fi

chown -R 10001:10001 secrets/flowstack
chown -R 999:999 secrets/redis secrets/postgres
chown -R 99:99 secrets/haproxy
