#!/bin/sh
# Installs exitgate into a dev container's image. The published feature holds the binary beside this script.
set -eu
cd "$(dirname "$0")"
[ "$(id -u)" = 0 ] || { echo "exitgate: install as root" >&2; exit 1; }
[ -f exitgate ] || { echo "exitgate: the binary is missing beside install.sh; make build, and copy .build/exitgate here" >&2; exit 1; }
mkdir -p /usr/local/bin /usr/local/share/exitgate /etc/profile.d /var/log
cp exitgate /usr/local/bin/exitgate
chmod 0755 /usr/local/bin/exitgate
cat >/usr/local/share/exitgate/start.sh <<EOF
#!/bin/sh
# The container's entrypoint runs this as root, before the dev container's own command. Without a fence there is no container.
/usr/local/bin/exitgate run --policy '${POLICY:-/etc/exitgate/policy.yaml}' </dev/null >>/var/log/exitgate.log 2>&1 &
gate=\$!
until /usr/local/bin/exitgate status >/dev/null 2>&1; do
	kill -0 \$gate 2>/dev/null || { tail -n 3 /var/log/exitgate.log >&2; kill -TERM 1; exit 1; }
	sleep 0.1
done
/usr/local/bin/exitgate env --format sh >/etc/profile.d/exitgate.sh
EOF
chmod 0755 /usr/local/share/exitgate/start.sh
