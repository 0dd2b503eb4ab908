if [ "$1" = train ]; then
    deepspeed llava/train/train_mem.py --version v1
fi
