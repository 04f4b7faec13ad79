# Trains what training_*.npz of this folder hold, one after the other in the order given, until so many seconds are over.
#   SECONDS_ALL=500 OUT=out sh train.sh miniimagenet_5w1s omniglot_20w1s
# All compile side by side at once; then each waits for its turn, and miniImageNet for miniimagenet.npy.
# What is done so far is copied to $OUT after every training and at the end.
export NVIDIA_TF32_OVERRIDE=0 XLA_PYTHON_CLIENT_PREALLOCATE=false TF_CPP_MIN_LOG_LEVEL=2 PYTHONUNBUFFERED=1
export XLA_FLAGS=--xla_gpu_enable_triton_gemm=false
end=$(($(date +%s) + ${SECONDS_ALL:-500}))
OUT=${OUT:-out} && mkdir -p "$OUT"
for name in "$@"; do
  python3 run.py train "training_$name.npz" "trained_$name.npz" --every="${EVERY:-3000}" --images="turn_$name.npy" \
    </dev/null >"training_$name.log" 2>&1 &
done
save() {
  for file in trained_*.npz; do [ -f "$file" ] && cp "$file" "$OUT/unfinished" && mv "$OUT/unfinished" "$OUT/$file"; done
  tail -n 60 training_*.log >"$OUT/all.log"
}
for name in "$@"; do
  case $name in omniglot*) touch "turn_$name.npy" ;; *) ln -sf miniimagenet.npy "turn_$name.npy" ;; esac
  until grep -q "iterations .* in\|not finite\|Error" "training_$name.log" || [ "$(date +%s)" -ge $end ]; do sleep 0.5; done
  save
  tail -n 1 "training_$name.log"
  [ "$(date +%s)" -ge $end ] && break
done
kill $(jobs -p) 2>/dev/null
ls -l "$OUT"
