"""Each parser against what no program should send, guided by the code that it reaches: `make fuzz`.

targets/   one module for each parser: what may come out of it, and what must hold of the result
crashers/  what was found once, replayed by test_crashers.py
"""
