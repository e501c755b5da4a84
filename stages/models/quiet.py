"""transformers without bars of its own, such as `Writing model shards`: whoever uses it imports this."""

from huggingface_hub.utils.tqdm import enable_progress_bars
from transformers.utils.logging import disable_progress_bar

disable_progress_bar()
enable_progress_bars()  # of downloads, which take long
