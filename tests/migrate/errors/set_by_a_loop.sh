for RATE in 1e-3 2e-3; do
    echo $RATE
done
deepspeed llava/train/train_mem.py --learning_rate $RATE
