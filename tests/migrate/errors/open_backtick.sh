X=`date
deepspeed llava/train/train_mem.py --version v1
