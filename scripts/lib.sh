# shellcheck shell=bash
# Shared by the scripts of this folder, which source it first.
# It sets the strict mode, goes to the root of the clone and gives them `say`, `die` and `step`.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

target=${CARGO_TARGET_DIR:-target}
[[ $target == /* ]] || target=$PWD/$target
logs=$target/logs
mkdir -p "$logs"

# rustup's installer puts cargo there, but a shell that was open before doesn't know.
PATH=$PATH:$HOME/.cargo/bin

say() { printf '%s\n' "$*"; }
die() {
    printf '%s\n' "$@" >&2
    exit 1
}

# Prints the comment block at the top of the calling script, which is its help.
print_help() { awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"; }

# step LOG-NAME "what is done" "what to do when it fails" COMMAND…
# Runs COMMAND with its output in a log file. Prints one line; the log's last 30 lines on failure.
step() {
    local log=$logs/$1.log what=$2 advice=$3 begin=$SECONDS
    shift 3
    printf '%-58s' "$what …"
    if "$@" >"$log" 2>&1 </dev/null; then
        printf 'ok (%d s)\n' $((SECONDS - begin))
        return 0
    fi
    printf 'FAILED (%d s)\n' $((SECONDS - begin))
    {
        say "The end of $log:"
        tail -n 30 "$log" | sed 's/^/    /'
        [[ -z $advice ]] || say "$advice"
    } >&2
    return 1
}

# The same for long builds: the output is shown too.
loud_step() {
    local log=$logs/$1.log what=$2 begin=$SECONDS
    shift 2
    say "$what …"
    if "$@" 2>&1 </dev/null | tee "$log"; then
        say "$what: ok ($((SECONDS - begin)) s)"
        return 0
    fi
    say "$what: FAILED ($((SECONDS - begin)) s), see $log"
    return 1
}
