# Programs that need more than a folder, as functions of the shell that runs a page's blocks. Each
# checks what can be checked here, says why it does no more, and fails for what it does not know.

# curl itself; an answer of 400 and above is an error, as it is for a reader.
curl() { command curl -f --no-progress-meter --max-time 60 "$@"; }

# The folder is the reader's own, and so are its users.
sudo() { "$@"; }
runuser() { [[ "$1 $3" = "-u --" ]] && "${@:4}"; }
useradd() { [[ $1 = --system && ${*: -1} = [a-z]* ]]; }
chgrp() { test -e "$2"; }
install() {
  local words=()
  while (($#)); do
    case $1 in -o | -g) shift 2 ;; *) words+=("$1"); shift ;; esac
  done
  command install "${words[@]}"
}

# Nobody is there to edit it, but it could be.
editor() { test -w "$1"; }

# No network, and the checkout is no repository: a clone is a copy.
git() { [[ "$1 $2" = "clone REPOSITORY" ]] && mkdir -p "$(dirname "$3")" && cp -a "$READER/checkout" "$3"; }

# Nothing is installed: the file or the extra that is named is there.
pip() {
  local word
  for word in "${@:2}"; do
    case $word in
      -*) ;;
      *.txt) test -s "$word" ;;
      embedding-service\[*\]) grep -q "^$(sed 's/.*\[\(.*\)\]/\1/' <<<"$word") = \[" pyproject.toml ;;
      *) return 1 ;;
    esac || return 1
  done
}

# systemd is not the first process here: the verb is one, the unit was installed before, and an
# instance has its settings. `systemd-analyze verify` reads the units in tests/deploy/test_systemd.py
# and tests/commands/test_init.py.
systemctl() {
  local units=$READER/root/etc/systemd/system settings=$READER/root/etc/embedding-service word
  [[ $1 =~ ^(daemon-reload|enable|status|reload|restart)$ ]] || return 1
  for word in "${@:2}"; do
    case $word in
      --now | nginx) ;;
      *@*) test -f "$units/${word%@*}@.service" && test -f "$settings/${word#*@}.yaml" -o -f "$settings/${word#*@}.env" ;;
      *) test -f "$units/$word.service" ;;
    esac || return 1
  done
}
journalctl() { [[ "$1 ${*:3}" = "-u -f -o cat" ]] && systemctl status "$2"; }

# tests/deploy/test_nginx_files.py has nginx read the file, which here is in its folder.
nginx() { [[ $* = -t ]] && grep -q server_name "$READER"/root/etc/nginx/conf.d/*.conf; }

# No daemon: files and services exist, and the image's entry point is this command.
docker() {
  case "$1 $2" in
    "build -t") test -f "$4/Dockerfile" || test -f "$6/$5" ;;
    "push "*) ;;
    "run --rm") embedding-service "${@:4}" ;;
    "compose build") grep -q "^  $3:" compose.yaml ;;
    "compose up") test -s embedding-keys && test -s grafana-password && grep -q '^  gateway:' compose.yaml ;;
    *) return 1 ;;
  esac
}

# No cluster: tests/deploy/test_kubernetes.py checks the manifests against Kubernetes' schemas.
kubectl() {
  case " $* " in
    *" create namespace "*) grep -q "name: ${*: -1}" deploy/kubernetes/namespace.yaml ;;
    *" create secret generic "*) test -s "$(sed s/.*--from-file=// <<<"$*")" ;;
    *" apply -k "*) test -f "${*: -1}/kustomization.yaml" ;;
    *" rollout status "*) grep -q "name: $(sed s:.*/:: <<<"$*")" deploy/kubernetes/deployment.yaml ;;
    *) return 1 ;;
  esac
}

# tests/deploy/test_monitoring.py has promtool read it.
promtool() { [[ "$1 $2" = "check config" ]] && test -s "$3"; }
