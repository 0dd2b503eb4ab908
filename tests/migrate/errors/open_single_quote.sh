X='lmsys/vicuna-7b-v1.5
deepspeed llava/train/train_mem.py --model_name_or_path $X
