"""The demo language model: its weights in `model/`, and the script that trained them."""
