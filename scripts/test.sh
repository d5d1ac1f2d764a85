#!/bin/sh
# Configures, builds and tests the named presets one after the other (default: release asan tsan), all of them even
# when one fails, and ends with the sum: "N passed, N failed". The exit status is 0 only when nothing failed.
set -u
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- release asan tsan

passed=0
failed=0
for preset in "$@"; do
  start=$(date +%s)
  echo "== $preset"
  if ! { cmake --preset "$preset" -Wno-dev && cmake --build --preset "$preset"; } >"build-$preset.log" 2>&1; then
    tail -n 60 "build-$preset.log"
    rm -f "build-$preset.log"
    echo "== $preset: does not build"
    failed=$((failed + 1))
    continue
  fi
  rm -f "build-$preset.log"
  built=$(date +%s)
  results="build/$preset/test-results.xml"
  rm -f "$results"
  ctest --preset "$preset" --parallel "$(nproc)" --output-junit "$PWD/$results" --timeout 600
  status=$?
  count=$(sed -n 's/.*<testsuite [^>]*//; t; s/^[[:space:]]*tests="\([0-9]*\)".*/\1/p' "$results" 2>/dev/null | head -n 1)
  bad=$(sed -n 's/^[[:space:]]*failures="\([0-9]*\)".*/\1/p' "$results" 2>/dev/null | head -n 1)
  count=${count:-0}
  bad=${bad:-0}
  if [ "$status" != 0 ] && [ "$bad" = 0 ]; then bad=1; fi
  skipped=$(sed -n 's/^\[  SKIPPED \] \(.*\) ([0-9]* ms)$/\1/p' "build/$preset/Testing/Temporary/LastTest.log" |
    sed 's|/[^/.]*$||' | sort | uniq -c)
  if [ -n "$skipped" ]; then
    echo "== $preset: skipped, for want of a GPU or of an oracle's directories (cases, test):"
    echo "$skipped"
  fi
  passed=$((passed + count - bad))
  failed=$((failed + bad))
  echo "== $preset: built in $((built - start)) s, tested in $(($(date +%s) - built)) s"
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" != 0 ]
