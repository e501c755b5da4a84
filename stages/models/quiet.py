"""transformers without bars of its own, such as `Writing model shards`: whoever uses it imports this."""

from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
from transformers.utils.logging import disable_progress_bar

_downloads = not are_progress_bars_disabled()
disable_progress_bar()
if _downloads:
    enable_progress_bars()  # of downloads, which take long
