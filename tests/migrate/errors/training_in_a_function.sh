train() {
    deepspeed llava/train/train_mem.py --version v1 --output_dir $1
}
train out
