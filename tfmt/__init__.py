"""tfmt fine-tunes exactly the part of BERT you mean, and proves it."""

import os

# Hugging Face's TF models are built on Keras 2. This has to be set before anything imports TensorFlow.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

__version__ = "0.1.0"
