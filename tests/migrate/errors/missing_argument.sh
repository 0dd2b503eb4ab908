DATA="$1"
deepspeed llava/train/train_mem.py --data_path $DATA --output_dir $2
