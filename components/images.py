"""The image every task runs in; one image holds the whole project. $WOVR_IMAGE names another."""

import os

TRAIN = os.environ.get("WOVR_IMAGE", "wovr:0.1.0")
