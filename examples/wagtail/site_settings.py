"""The generated site's settings, with what the platform gives: a secret key, and a volume for database and uploads."""

import os
from pathlib import Path

from mysite.settings.production import *  # noqa: F403

HERE = Path(__file__).resolve().parent
VOLUME = Path(os.environ.get("RUNG_VOLUME_DATA", HERE))

# The build has no secrets; instances do, for the app file requires it.
SECRET_KEY = os.environ.get("SECRET_KEY", "for the build only, nothing is served with it")

# Whoever reaches an instance came through the ingress, which has looked at the host.
ALLOWED_HOSTS = ["*"]
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": VOLUME / "wagtail.db",
        "OPTIONS": {
            "timeout": 20,
            "transaction_mode": "IMMEDIATE",
            "init_command": "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;",
        },
    }
}

ROOT_URLCONF = "site_urls"
MIDDLEWARE.insert(1, "whitenoise.middleware.WhiteNoiseMiddleware")  # noqa: F405
STATIC_ROOT = HERE / "static"
MEDIA_ROOT = VOLUME / "media"
