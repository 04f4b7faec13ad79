# Measures every update_*.npz of this folder: all compile side by side and compute one after the other.
#   sh measure.sh          in a folder with run.py, peer.py, peer_jax.py and the files that export.py wrote
# float32 products are exact, and by cuBLAS: XLA would try many programs of its own for each, which takes longer.
export NVIDIA_TF32_OVERRIDE=0 XLA_PYTHON_CLIENT_PREALLOCATE=false TF_CPP_MIN_LOG_LEVEL=2 PYTHONUNBUFFERED=1
for file in update_*.npz; do
  XLA_FLAGS=--xla_gpu_enable_triton_gemm=false timeout "${SECONDS_OURS:-130}" \
    python3 run.py update "$file" --lock=lock </dev/null >"ours_$file.log" 2>&1 &
done
wait
for file in update_*.npz; do
  timeout "${SECONDS_PEER:-80}" python3 peer.py "$file" --lock=lock </dev/null >"jax_$file.log" 2>&1 &
done
wait
tail -qn 1 ours_*.log jax_*.log
