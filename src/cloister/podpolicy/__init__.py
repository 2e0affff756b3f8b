"""What may run in one pod: model, one evaluator, its explanation, and the generator.

Pure: no input or output, no clock. The guest enforces it; the owner generates it; both read the same model. Trusted
by the owner because it arrives inside the measured init data.
"""
