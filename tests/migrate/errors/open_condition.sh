if [ -d data ]; then
    DATA=data
deepspeed llava/train/train_mem.py --data_path $DATA
