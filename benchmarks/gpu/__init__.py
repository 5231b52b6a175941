"""The checks of benchmarks/gpu_check.py: functions of a :class:`.setting.Setting`, whose device is a parameter."""
