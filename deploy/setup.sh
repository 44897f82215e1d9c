#!/usr/bin/env bash
# Installs one pinned set from deploy/requirements/ and this project into .venv. Called by `make setup`.
# Usage: deploy/setup.sh cpu|cuda      PYTHON=/path/to/python3.11 chooses the interpreter.
#
# .venv/.installed is written last and names what is installed: an interrupted run is continued by the next one,
# a finished one costs nothing, and a change of the requirements, of the set or of the folder is noticed.
set -euo pipefail
cd "$(dirname "$0")/.."

build=${1:?usage: deploy/setup.sh cpu|cuda}
requirements=deploy/requirements/$build.txt
[ -f "$requirements" ] || { echo "setup: there is no $requirements; known: cpu, cuda" >&2; exit 2; }
python=${PYTHON:-python3.11}
stamp=.venv/.installed
place="$build in $PWD"
wanted="$place $(cat "$requirements" pyproject.toml deploy/setup.sh | sha256sum | cut -d' ' -f1)"

[ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && exit 0

if ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
    echo "setup: $python is not Python 3.11, for which $requirements is pinned. Fix: install it or set PYTHON=" >&2
    exit 2
fi
# Two sets in one environment overwrite each other's files, and scripts point at the folder they were made in.
if [ -f .venv/.place ] && [ "$(cat .venv/.place)" != "$place" ]; then
    rm -rf .venv
fi
.venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear .venv
echo "$place" >.venv/.place
rm -f "$stamp"

echo "setup: installing $(grep -c == "$requirements") packages from $requirements (about two minutes the first time)"
pip=(.venv/bin/python -m pip --disable-pip-version-check -qq) # -qq: errors only
torch=$(grep '^torch==' "$requirements")
grep -v '^torch==' "$requirements" | "${pip[@]}" install --no-deps -r /dev/stdin
if ! "${pip[@]}" install --no-deps "$torch"; then
    [ "$build" = cpu ] || exit 1
    echo "setup: the package index has no $torch; taking it from PyTorch's own index, which uv knows by name"
    "${pip[@]}" install uv
    .venv/bin/uv pip install --quiet --python .venv/bin/python --torch-backend cpu --no-deps "${torch%+cpu}"
fi
"${pip[@]}" install --no-deps --no-build-isolation --editable .
echo "$wanted" >"$stamp"
echo "setup: done"
