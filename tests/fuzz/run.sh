#!/bin/sh
# Builds the fuzz targets and runs them one after the other, on from where the last run stopped.
#
#   run.sh SECONDS [TARGET...]     seconds for each; default: all targets
#
# What an input found is kept in build/fuzz/corpus/<target>, what crashed in build/fuzz/crashes. The exit status is 0 only
# when no target found anything.
set -u
cd "$(dirname "$0")/../.."
seconds="$1"
shift
[ $# -gt 0 ] || set -- $(ls tests/fuzz/*_fuzz.cc | sed 's|.*/||; s|_fuzz.cc$||')

cmake --preset fuzz -Wno-dev >/dev/null && cmake --build --preset fuzz --target fuzz_targets || exit 1
python3 tests/fuzz/make_seeds.py build/fuzz/seeds || exit 1
mkdir -p build/fuzz/crashes
failed=
for target in "$@"; do
  mkdir -p "build/fuzz/corpus/$target"
  case "$target" in
    chat_output) dictionary=chat.dict ;;
    tokenizer_text) dictionary=chat.dict ;;
    *) dictionary=json.dict ;;
  esac
  echo "== $target: $seconds s"
  if "build/fuzz/tests/fuzz/${target}_fuzz" -max_total_time="$seconds" -timeout=20 -report_slow_units=20 \
    -rss_limit_mb=3000 -max_len=16384 -print_final_stats=1 -dict="tests/fuzz/$dictionary" -artifact_prefix="build/fuzz/crashes/$target-" \
    "build/fuzz/corpus/$target" "build/fuzz/seeds/$target" >"build/fuzz/$target.log" 2>&1; then
    grep -E "^stat::(number_of_executed_units|new_units_added|peak_rss_mb)|cov:" "build/fuzz/$target.log" | tail -n 4
  else
    tail -n 60 "build/fuzz/$target.log"
    failed="$failed $target"
  fi
done
[ -z "$failed" ] || { echo "found something:$failed (see build/fuzz/crashes)"; exit 1; }
echo "nothing found"
