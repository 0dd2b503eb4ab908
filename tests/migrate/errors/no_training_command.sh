pip install -e .
python -m llava.eval.model_vqa --model-path llava
