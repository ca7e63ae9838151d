"""A script for ChatGLM-6B as one finds it everywhere, with its import changed and nothing else.

python examples/seed_chatglm.py [MODEL.gguf]
"""

import sys

from glmlite import AutoModelForCausalLM, AutoTokenizer

path = sys.argv[1] if len(sys.argv) > 1 else None  # None: the built-in model
tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True).half().eval()

response, history = model.chat(tokenizer, "你好", history=[], do_sample=False)
print(response)
response, history = model.chat(tokenizer, "晚上睡不着怎么办", history=history, do_sample=False)
print(response)

inputs = tokenizer("床前明月光，", return_tensors="np")
outputs = model.generate(inputs["input_ids"], max_new_tokens=20, do_sample=False)
print(tokenizer.decode(outputs[0], skip_special_tokens=True))
