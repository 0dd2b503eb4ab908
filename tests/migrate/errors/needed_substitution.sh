NAME=run-$(date +%F)
GPUS=$(nvidia-smi -L | wc -l)
deepspeed --num_gpus $GPUS llava/train/train_mem.py --output_dir out/$NAME
