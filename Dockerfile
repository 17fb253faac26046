# The tested versions on a CUDA base. torch's wheel brings CUDA's libraries, the host its driver (NVIDIA Container Toolkit).
#
#   docker build --tag budget-trainer .
#   docker run --rm --gpus all --ipc host --volume "$PWD/data:/budget-trainer/data" --volume "$PWD/out:/budget-trainer/out" \
#       budget-trainer accelerate launch --config_file accelerate_configs/single_gpu.yaml train_mlm.py \
#       recipes/gpu_8m.yaml --data_dir data/packed --output_dir out/gpu_8m --total_training_time 8m
FROM nvidia/cuda:13.0.2-base-ubuntu24.04

# A C++ compiler and Python's headers: torch.compile and Triton build with them.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

ENV PATH=/opt/venv/bin:$PATH
WORKDIR /budget-trainer
COPY . .
RUN python3 -m venv /opt/venv \
    && pip install --no-cache-dir --constraint constraints.txt --editable .

CMD ["budget-train-mlm", "--help"]
