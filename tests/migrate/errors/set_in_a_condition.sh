if [ -z "$SIZE" ]; then
    SIZE=13b
fi
deepspeed llava/train/train_mem.py --model_name_or_path lmsys/vicuna-$SIZE-v1.5
