#!/bin/sh
# The build: installs Wagtail, lets it make its site, and gathers the static files.
set -eu
python3 -m pip install --no-input --disable-pip-version-check --target lib -r requirements.txt
mkdir site
python3 -m wagtail.bin.wagtail start mysite site
python3 -m django collectstatic --no-input
